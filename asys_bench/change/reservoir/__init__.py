"""Rows of a whole run, at any moment: a stratified sample of each hook, in the run's folder.

Read in this order: `rows` (what a kept row is), `windows` (the sample), `sink` (the worker that fills it),
`read` (what a reader gets).
"""
