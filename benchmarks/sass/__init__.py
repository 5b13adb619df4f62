"""Static figures of the CUDA kernels: what their machine code says without a GPU (docs/kernels.md)."""
