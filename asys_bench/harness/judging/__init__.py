"""From rounds to verdicts. Pure.

`stats` (formulas), `evidence` (what rounds say of one statistic), `verdict` (PASS, FAIL or
INCONCLUSIVE), `judge` and `outcome` (the result's cases, and its whole).
"""
