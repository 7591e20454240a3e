"""int8: one signed byte per element and a float32 scale per row."""
