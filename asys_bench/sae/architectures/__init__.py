"""The architectures: one file and one subclass of `SparseAutoencoder` each, named in `by_name`.

Read in this order: `base` (what an architecture is, what goes into a training step and comes out of it),
`topk` (one architecture), `sparse_gradients` (the last part of each hand-written step).
"""
