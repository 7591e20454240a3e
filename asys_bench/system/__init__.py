"""What the kernel gives a process that is not ours alone. The lowest floor: it imports no other.

`descriptor` a number that the host may close or reuse at any time, `mapping` shared memory without one,
`liveness` whether a process lives (pidfd), `priority` giving way to the host, `standard_fds`
descriptors 0 to 2, `allocator` memory that stays with a worker, `process_usage` CPU time and memory,
`cpu_lists` CPUs as the kernel writes them, `files/` files that survive a crash and that only their
owner reads.
"""
