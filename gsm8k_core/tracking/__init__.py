"""Where a run's events go: the terminal, metrics.jsonl, and trackers in a process of their own."""
