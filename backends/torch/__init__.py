"""PyTorch through Hugging Face's Trainer: CUDA, CPU and MPS. Importing this package imports no torch."""
