"""How a model changes while it trains: what its host says of its rows, and what can be read from them.

It imports the readers (`rundir`) and what is below; reports and the life of a run import it. Read
`label_join` (rows and labels of a live run), then `probe`; `alarm` watches figures and rows. `reservoir/`
keeps rows of the whole run; `timeline/` runs an SAE over them and says which features were born when, with
the tests of `statistics`. `feature_index/` keeps what each feature fires on.
"""
