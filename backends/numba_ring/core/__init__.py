"""What numba compiles, and how.

Read in this order: `layout` (every constant of the segment), `ring` (the protocol: `cpp_spmc/ring.hpp`
in numba), `producer_core`, `consumer_core`. `compiled` and `code_cache`: the decorators, and where
machine code is kept.
"""
