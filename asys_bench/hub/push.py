"""Sending a folder of SAEs to the hub, in one commit of exactly its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asys_bench.sae.exchange.hub import MISSING, said


class HubError(RuntimeError):
    """The hub cannot be asked or refuses; says why, and never shows a token."""


def push_folder(
    folder: Path, files: Sequence[Path], repo: str, *, public: bool, message: str
) -> str:
    """Make `repo` where it is missing (private, unless `public`) and commit `files`; the commit's address.

    The token comes from HF_TOKEN or `hf auth login`, the server from HF_ENDPOINT.

    Raises:
        HubError: huggingface_hub is missing, or the hub refuses.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError:
        raise HubError(MISSING) from None
    api = HfApi(library_name="asys-i")
    additions = [CommitOperationAdd(file.as_posix(), str(folder / file)) for file in files]
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        done = api.create_commit(repo, operations=additions, commit_message=message)
    except Exception as error:  # noqa: BLE001 - HTTP, connections, missing tokens: of many kinds
        raise HubError(said(error)) from None
    return str(done.commit_url)
