"""Triton kernels: what the GPU does in one launch where PyTorch would take many. Imported only where they are used."""
