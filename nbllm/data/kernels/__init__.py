"""The Numba code of `nbllm.data` and nothing else: arrays in, arrays out, buffers and keys passed in.

Each kernel has a reference in NumPy or plain Python in `tests/data`.
"""
