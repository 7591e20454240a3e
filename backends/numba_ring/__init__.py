"""NumbaRingBus: the shared-memory ring of cpp_spmc, byte for byte, compiled by numba."""
