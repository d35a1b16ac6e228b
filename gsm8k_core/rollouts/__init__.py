"""A model's own answers to train problems: which are asked for, which are kept, and what becomes a training row."""
