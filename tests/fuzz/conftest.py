"""The fuzzers are scripts; a quick run imports them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
