"""Triton kernels, for CUDA. Imported only where there is a device (or Triton's interpreter)."""

FEW_TOKENS = 1
"""Up to here reading the weights is all that counts (kernels.thin); with more cuBLAS is faster."""
