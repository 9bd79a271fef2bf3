"""The Triton kernels: each file reads formula, kernel, launcher."""
