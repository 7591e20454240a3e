"""What a round needs, and what the machine did meanwhile.

`launch` starts a round (`harness.round`), `recording` keeps its samples, `noise` and `machine` say what
the machine did. `transport`, `consumers` and `payloads`: a bus under test, every byte verified.
"""
