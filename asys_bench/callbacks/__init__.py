"""One-line observation for training libraries: each module is a callback over `observe`.

Import the one of your library; none of them imports another's.
"""
