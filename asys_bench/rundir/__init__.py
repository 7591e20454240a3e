"""The readers of a run: its files while it goes on or long after, and its bus while it goes on.

Names and schemas of the files are in `contracts.run_files`. Read in this order: `open_run` (everything
that a run has written), `live_run` (attaching to one that goes on), `subscribe` (a consumer of your own
on its bus), `attach` (the run that a command means), `verify/` (every file checked). `archive_view`,
`token_rows`, `feature_index` (with `feature_index_layout` and `feature_latest`) and `top_tokens` are what
`Run` gives out; `evaluation` puts a run's SAEs back into its model, `evaluation_documents` keeps what it
found; `saelens_provider` feeds SAELens.

It may import what is below `run`; it never starts anything.
"""
