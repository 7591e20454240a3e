"""The bus contract over a ring in shared memory, once for all backends that keep the layout of `cpp_spmc`.

A backend gives a `RingSegment` (an open segment: its tables, members and writers); `client.py` makes the
bus of it, for the owner and for other processes. `options.py` are the options of all of them; `forks.py`
notices a fork.
"""
