"""The words of the run: data, prompts, batches, extraction, statistics. Imports neither torch nor mlx."""

__version__ = "0.2.0"
