"""A run's copy in an object store: `s3://`, `gs://` or `file://`.

Read in this order: `uri` (where a copy is), `manifest` (what it holds), `objects` (putting and getting,
and what can go wrong), `mirror` (a copy as a folder, for every reader of runs). `monitors.upload` fills
a copy.

It may import `contracts` and `system`. `uri` imports nothing else, because the configuration needs it.
"""
