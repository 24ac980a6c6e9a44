"""Kernels of our own: Triton's, for devices alone, and C++ for the CPU."""

FEW_TOKENS = 1
"""Up to here reading the weights is all that counts (kernels.thin); with more cuBLAS is faster."""
