"""Kernels of APA for each backend: eager (PyTorch), native (C++, CPU) and triton (GPU)."""
