"""Reading what a run has written, while it goes on or long after, and listening to one that goes on.

`open_run` everything that a run has written, `subscribe` a consumer of your own on its bus, `live_run`
how a process of the same user reaches a run that goes on, `attach` which run a command means, `verify/`
every file checked. `archive_view`, `token_rows`, `top_tokens` and `metrics_table` are what `Run` gives
out.
"""
