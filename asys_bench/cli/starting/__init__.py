"""`asys-run init`: a first configuration for a training script, which is read and never run.

In order: `syntax` (names, classes and calls of a script), `models` (the modules that it builds, by name),
`libraries` (which library trains, and what its models are called inside), `template` (the file).
Imports neither torch nor any of the libraries.
"""
