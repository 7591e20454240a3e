"""`Result`, schema asys.result/1: the document, its files, and what is made from it.

`result` (the document), `result_run` (its parts and enumerations), `store` (files, written whole;
comparing and exporting).
"""
