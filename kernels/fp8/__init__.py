"""fp8: e4m3 floats of one byte and a float32 scale per row."""
