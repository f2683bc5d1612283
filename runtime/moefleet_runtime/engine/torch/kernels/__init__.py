"""Kernels for one GPU, in Triton; imported only where there is one (or under Triton's interpreter, as the tests do)."""
