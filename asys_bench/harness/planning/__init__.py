"""From a suite file to contenders in order.

`suite` (its schema), `suite_file` (reading and checking it), `expansion` (a case -> its contenders),
`targets` (the grammar of a limit), `plan` (order, looks and seeds; pure).
"""
