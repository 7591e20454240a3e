"""cpp_spmc: a lock-free sharded SPMC ring in shared memory, in C++ (README.md)."""
