"""What the kernel gives a process that is not ours alone: descriptors and mappings. The lowest floor.

`descriptor` a number that the host may close or reuse at any time, `mapping` shared memory without one.
"""
