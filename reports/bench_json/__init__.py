"""A bench result as canonical JSON."""
