"""Which features fire on a text that somebody types: `asys-run eye RUN --model MODEL`.

Read `process` (the server's side: one question at a time, bounded), `child` (the process that has the model),
`reading` (text -> rows of the hooked module -> features) and `same_weights` (are they those of the run?).
"""
