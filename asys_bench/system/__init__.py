"""What the kernel gives a process that is not ours alone, and says of it. The lowest floor.

`descriptor` a number that the host may close or reuse at any time, `mapping` shared memory without one,
`process` which process has a pid and whose clock it reads.
"""
