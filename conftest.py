"""Keep the repository root off sys.path: its `kernels/` would shadow a Hugging Face package name.

A shell that starts a job in the background has it ignore SIGINT, and a run that is told to ignore a signal
does. The tests send it, so here it is as in a terminal.
"""

import signal
import sys
from pathlib import Path

_ROOT = str(Path(__file__).parent)
sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)]

for _number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(
            _number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        )
