"""Where the copy of a run is: `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder`.

Credentials come from the environment, as the cloud's own tools read it. A URI that holds some is
refused, because it would be written into config.yaml, logs and process lists; `without_secrets` takes
them out of messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEMES = ("s3", "gs", "file")
RUN_ID = "{run_id}"
"""Stands for the run's id in `storage.uri`."""
_SECRET = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"]*@")
_QUERY = re.compile(r"((?:s3|gs|file)://[^\s'\"?]*)\?[^\s'\"]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")


@dataclass(frozen=True, slots=True)
class Location:
    """`root`: bucket (none for `file`); `path`: the key below it, or the folder; neither ends in a slash."""

    scheme: str
    root: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.root}{'' if self.scheme == 'file' else '/'}{self.path}"

    @property
    def key(self) -> str:
        """As pyarrow names it."""
        return self.path if self.scheme == "file" else f"{self.root}/{self.path}"


def is_uri(text: str) -> bool:
    """Whether `text` is meant as the place of a copy, right or wrong, and not as a folder."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def parse_uri(text: str) -> Location:
    """The place that `text` names.

    Raises:
        ValueError: another scheme, no bucket, no prefix, `..`, credentials or parameters in it; never shows
            these.
    """
    scheme, colon, rest = text.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in SCHEMES:
        raise ValueError(f"must begin with {', '.join(f'{one}://' for one in SCHEMES)}")
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            "holds credentials, and would be written into the run's files; give them in the environment "
            "(for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile)"
        )
    if "?" in rest or "#" in rest:
        raise ValueError(
            "has parameters; AWS_ENDPOINT_URL names a server of your own, AWS_DEFAULT_REGION a region"
        )
    if any(ord(letter) < 32 for letter in rest) or len(text) > 900:
        raise ValueError("holds a control character, or is longer than 900 characters")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError(
                "names no folder: file:// is followed by an absolute path, file:///mnt/runs"
            )
        return Location(scheme, "", _path(rest, "/"))
    bucket, _, path = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{bucket!r} is no name of a bucket")
    path = _path(path, "")
    if not path:
        raise ValueError(
            f"names no place in the bucket; add one, as in {scheme}://{bucket}/runs/{RUN_ID}"
        )
    return Location(scheme, bucket, path)


def place_of(uri: str, run_id: str) -> Location:
    """Where the copy of a run is, `{run_id}` filled in. Raises ValueError: as `parse_uri`."""
    return parse_uri(uri.replace(RUN_ID, run_id))


def _path(text: str, start: str) -> str:
    parts = [part for part in text.split("/") if part]
    if any(part in (".", "..") for part in parts) or not (parts or not start):
        raise ValueError("leads upwards, or names no folder")
    return start + "/".join(parts)


def without_secrets(text: str) -> str:
    """`text` with `***` for credentials and parameters of URIs."""
    return _QUERY.sub(r"\1?***", _SECRET.sub(r"\1***@", text))
