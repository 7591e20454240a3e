"""Sink `probe`: linear probes from activations or SAE features to labels, while the model trains.

Read `blocks` (what is held out), `window` (the rows that are kept), `hook`, `fit` and `scores`, then `fits`
and `sink`. `rundir.probes` reads what it wrote.
"""
