"""The runs, copies and server that the uploader's tests have."""

import runpy
from pathlib import Path

_OF = runpy.run_path(str(Path(__file__).parents[1] / "monitors" / "upload" / "conftest.py"))
run, copy, uploader = _OF["run"], _OF["copy"], _OF["uploader"]
s3_server, s3, bucket = _OF["s3_server"], _OF["s3"], _OF["bucket"]
