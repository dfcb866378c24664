"""The Numba code of `nbllm.data` and nothing else: arrays in, arrays out, buffers and keys passed in.

Each kernel has a NumPy reference in `tests/data/test_kernels.py`.
"""
