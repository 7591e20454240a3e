"""The eyepiece: a run, live or finished, as pages of a small server on this machine (`asys-run eye RUN`).

Read `serve` (the process), `beside_run` (one that a run starts), `address` and `guard` (who is let in), `app`
(what is asked and answered), `eye` (what a run can answer), `watch` and `curves` (its figures), `views`,
`sae_view`, `index_features` and `archive_features` (features), `marks` (the only file that a viewer changes),
then `pages/`: plain HTML, one style sheet and small modules, without a bundler. `one_file/` makes the same
pages a file without a server. It imports the run report and what stands below it.
"""
