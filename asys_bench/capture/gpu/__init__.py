"""Tensors that live on a GPU -> packets, without a wait in the host.

Read in this order: `streamer` (protocol and invariants; what a hook calls), `route` (what is encoded on
the device), `side_stream` and `in_flight` (one device, one packet), `flight_queue` and `committer` (the
thread that waits for the device and pushes), `outcome` (what became of each packet). `runtime` is what
all of it needs of a GPU, `cuda_runtime` that for CUDA, `pinned_region` page-locked memory. Imported by
`capture.offload` when a model has a CUDA parameter.
"""
