"""From a suite file to contenders in order.

`suite` (its schema), `suite_file` (reading and checking it), `suite_document` (problems by line),
`expansion` (a case -> its contenders), `targets` (the grammar of a limit), `plan` (order, looks and
seeds; pure).
"""
