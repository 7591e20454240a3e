"""The commands of `asys-bench`, a module each."""
