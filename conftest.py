"""Keep the repository root off sys.path: its `kernels/` would shadow a Hugging Face package name."""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).parent)
sys.path[:] = [entry for entry in sys.path if entry not in ("", _ROOT)]
