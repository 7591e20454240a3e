"""Filling a run's copy in an object store (`storage.uri`).

Read in this order: `ready` (which files of a run can be sent), `uploader` (sending them, and the order
that a kill at any point leaves whole), `plugin` (the worker that does it while the run goes on).
"""
