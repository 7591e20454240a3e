"""The sink `alarm`: watchers, one false-alarm budget for all of them, and a flight recorder.

Read `e_detector.py` (when to raise one), `innovations.py` (what is expected of the next value), `bank.py`
(several watchers and spans under one budget), `watchers.py` (where values come from), then `sink.py`.
"""
