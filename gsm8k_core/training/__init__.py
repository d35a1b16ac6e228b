"""A run: what it decides, what it measures of itself, what it needs in memory, and what it keeps on disk."""
