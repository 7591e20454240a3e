"""Names for features, proposed by a language model and scored on texts that it has not seen (`asys-run
names`).

Read `material` (which texts), `prompts` (what is asked, and what an answer says), `models` (what a model must
do) with `endpoint` and `local_model`, `scoring`, then `naming` (one SAE's features, resumed).
`rundir.feature_names` keeps them.
"""
