"""CURVE keys as files: who a receiver is, and which clients it lets in.

    DIR/receiver.secret  DIR/receiver.public        the receiver's; forwarders need the public one
    DIR/<client>.secret  DIR/<client>.public        a client's, for the training nodes
    DIR/allowed/<client>.public                     clients that the receiver lets in

Each file holds one key in Z85 (40 characters) and a newline. A secret has mode 0600, and is refused where
others may read it. A client is let in as long as its file is in `allowed/`: whoever deletes it locks it out
from the next connection on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asys_bench.system.files.atomic import make_private_folder, open_private
from asys_bench.system.files.below import read_file, scan_if_there

RECEIVER, ALLOWED, CLIENT = "receiver", "allowed", "client"
SECRET, PUBLIC = ".secret", ".public"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_MOST_BYTES = 256
MOST_CLIENTS = 10_000


class KeyFileError(RuntimeError):
    """A key cannot be used; says which file and the fix."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Z85."""

    public: str
    secret: str


def zmq_problem() -> str | None:
    """Why nothing can be sent from node to node here."""
    try:
        import zmq  # noqa: F401
    except ImportError:
        return "pyzmq is not installed: pip install 'asys-i[cluster]'"
    return None


def make_keys(folder: Path, clients: Iterable[str] = (CLIENT,)) -> list[Path]:
    """The receiver's keys, if there are none, and those of new clients. Gives back what was written.

    Raises:
        KeyFileError: a name that is none, or a client that is there already. OSError.
    """
    import zmq

    wanted = list(dict.fromkeys(clients))
    for name in wanted:
        if not NAME.fullmatch(name) or name in (RECEIVER, ALLOWED):
            raise KeyFileError(f"{name!r} is no name of a client: letters, digits, '.', '_', '-'")
        if (folder / f"{name}{SECRET}").exists():
            raise KeyFileError(
                f"{folder / name}{SECRET} is there already: a key is never overwritten"
            )
    make_private_folder(folder)
    make_private_folder(folder / ALLOWED)
    written = []
    names = [*([] if (folder / f"{RECEIVER}{SECRET}").exists() else [RECEIVER]), *wanted]
    for name in names:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        places = [(folder / f"{name}{SECRET}", secret), (folder / f"{name}{PUBLIC}", public)]
        if name != RECEIVER:
            places.append((folder / ALLOWED / f"{name}{PUBLIC}", public))
        for path, text in places:
            _write(path, text)
            written.append(path)
    return written


def read_pair(folder: Path, name: str) -> KeyPair:
    """Raises KeyFileError."""
    secret = folder / f"{name}{SECRET}"
    text = read_key(secret)
    if os.stat(secret).st_mode & 0o077:
        raise KeyFileError(f"{secret} can be read by others: chmod 600 {secret}")
    return KeyPair(read_key(folder / f"{name}{PUBLIC}"), text)


def read_key(path: Path) -> str:
    """Raises KeyFileError."""
    try:
        text = read_file(path, _MOST_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path}: {error}; asys-run keys {path.parent} makes keys") from None
    if not _Z85.fullmatch(text):
        raise KeyFileError(f"{path}: is no key in Z85 (40 characters)")
    return text


def allowed_clients(folder: Path) -> dict[str, str]:
    """Public key -> name of the client; what cannot be read is left out.

    Raises:
        OSError: the folder cannot be listed.
    """
    found: dict[str, str] = {}
    for path, _ in scan_if_there(folder / ALLOWED)[:MOST_CLIENTS]:
        if path.suffix == PUBLIC:
            try:
                found[read_key(path)] = path.stem
            except KeyFileError:
                continue
    return found


def is_key(text: str) -> bool:
    return _Z85.fullmatch(text) is not None


def _write(path: Path, text: str) -> None:
    fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(fd, "w") as file:
        file.write(text + "\n")
