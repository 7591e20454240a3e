"""What the kernel says of processes, memory and files. The lowest floor: it imports no other.

Read in this order: `process` (which process has a pid; giving way to the host), `liveness` (whether it
lives, by pidfd), `descriptor` (a number that the host may close or reuse at any time, and shared memory
without one), `standard_fds` (descriptors 0 to 2), `cpu_lists`, `process_usage` (CPU time and memory),
`allocator` (memory that stays with a worker), `files/` (files that survive a crash).
"""
