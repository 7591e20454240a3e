"""Compiled code below everything: `_coin`, the sampling coin for hooks on the general path, and `_steps`,
what a host pays for at each step. Whoever uses one has it in Python, too."""
