"""The products of a sparse training step.

Read in this order: `sparse_codes` ((row, feature, value) triples, and the threads of a step),
`sparse_kernels` (what there is to do, on every device, in torch's operators from `torch_kernels`),
`compiled_kernels` (the same in C++, from `native/`), `triton_kernels` and `choice` (on a GPU).
"""
