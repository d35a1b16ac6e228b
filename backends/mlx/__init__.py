"""MLX: Metal on a Mac, and the CPU or CUDA wheel on Linux. Importing this package imports no mlx."""
