"""The products of a sparse training step.

`sparse_kernels` chooses between `native/` (C++) and `torch_kernels`. `sparse_codes` holds the (row,
feature, value) triples that they work on, and the threads of a step.
"""
