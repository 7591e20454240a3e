"""`Result`, schema asys.result/1: the document, its files, and what is made from it.

`result` and `result_run` (the document), `words` (its enumerations), `store` (files, written whole),
`compare` and `export`.
"""
