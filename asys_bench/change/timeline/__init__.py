"""When did each feature of an SAE appear? Its current weights, run over the reservoir's rows.

Read in this order: `units` (how rows are cut), `firing` (the pass of an SAE over them), `left_over`
(directions that no feature reads), `histories` (births and deaths of lives, from counts alone), `causes`
(learnt, or other data), `appeared` (what was new), `twins` (births that are one), `earlier` (births of
earlier looks), `timeline` (of a run), `difference` (of two runs or moments).
"""
