"""The sink `feature_index`: what each feature of a hook's SAE fires on, kept while the run goes on.

Read in this order: `token_join` (rows and their tokens), `batches` (rows that are indexed together),
`index` (all that is kept), `slots` (which examples stay), `cofiring` (partners), `files`, `hook_index` (one
hook with its SAE), `sink`.
`rundir.feature_index` reads what it writes.
"""
