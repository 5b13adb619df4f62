"""Triton kernels, one file per op.  They compile for CUDA, ROCm and XPU, and run interpreted on the CPU in tests."""
