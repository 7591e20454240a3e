"""Past one machine: what a run sends to another node, and the account of it.

Read in this order: `book` (the address book: where receivers are).

It may import `workers` and what is below it; never `run`.
"""
