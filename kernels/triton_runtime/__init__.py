"""What the Triton versions of the kernels share: rows of strided tensors, float formats, launching."""
