"""One SAE trained by several processes (`torch.distributed`): its features, or its rows, are split.

Read in this order: `sae.ranks` (what a step asks of the others), `group_learner` (what rank 0 does),
`serve` (what the others do), `group_kernels` (a step's products), `state` (checkpoints), `processes` (ranks
started, watched and ended).
"""
