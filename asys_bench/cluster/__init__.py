"""Past one machine: what a run sends to another node, and the account of it.

Read in this order: `book` (the address book: where receivers are), `wire`, `forwarder`, `receiver`, `ledger`;
then what is known of all of them: `accounts`, `identities` (what must hold), `status` (in the book), `view`.

It may import `workers` and what is below it; never `run`.
"""
