"""topk: the largest magnitudes of each row, as values and indices."""
