"""A bench in a terminal: the verdicts at its end, and its progress while it runs."""
