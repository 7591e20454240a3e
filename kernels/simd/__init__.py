"""What the CPU kernels share: the compiled module, choosing an implementation, payload geometry."""
