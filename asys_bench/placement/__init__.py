"""Who runs where: the machine's shape, a plan for this run, its application and the proof of it.

`topology`   what the kernel says of CPUs, cores, sockets, NUMA nodes and cgroup limits
`plan`       a pure function: topology + needs + wishes -> placements, or why not
`gpus`       which worker computes on which GPU
`needs`      what a configuration asks for, before any process exists; room for the host's threads
`apply`      affinity, memory policy, nice and ionice of the calling process
`readback`   what the kernel says afterwards, compared with the plan
`manager`    `ResourceManager`: all of these for one run; `HostPlace`: the observed process's part of it
`picture`    the plan drawn for a terminal
"""
