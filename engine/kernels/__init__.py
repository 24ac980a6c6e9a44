"""Triton kernels, for CUDA. Imported only where there is a device (or Triton's interpreter)."""
