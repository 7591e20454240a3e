"""The built-in hosts."""
