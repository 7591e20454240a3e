"""Instrument floor: one copy into an arena, read in place in the same process."""
