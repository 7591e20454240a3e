"""Cast: floating-point tensors in a narrower dtype."""
