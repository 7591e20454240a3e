"""The commands: `run` is asys-run, `bench` is asys-bench; `commands/` has a file for each word after them.

They parse the command line, call the floor that does it, and print. Nothing imports them.
"""
