"""The commands: asys-run and asys-bench."""
