"""The online trainer of one hook point: rows in, a better SAE and its measurements out.

Read in this order: `trainer` (the whole), `trainer_parts` (what it consists of), `intake` and `buffer`
(the way of a row), `learner` (one optimizer step), `held_out` (the rows that it is measured on).
"""
