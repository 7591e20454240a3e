"""What a manifest may say: names that stay below the run, sizes and checksums that can be had."""

import json

import pytest

from asys_bench.store.manifest import Manifest, ManifestError, Stored, read_manifest

GOOD = {
    "object": "archive/h/a.arrows",
    "bytes": 3,
    "sha256": "a" * 64,
    "modified_ns": 1,
    "stored_ns": 2,
}


def document(**changes):
    plain = {
        "schema": "asys.store/1", "run_id": "r", "began_unix_ns": 1, "generation": 2, "writer": "w",
        "complete": False, "files": {"archive/h/a.arrows": GOOD}, "gone": [],
    }  # fmt: skip
    return json.dumps(plain | changes).encode()


def test_a_manifest_comes_back_as_it_was_written():
    manifest = Manifest(
        "r", 1, 2, "w", True, 3, {"run.json": Stored("versions/ab.run.json", 3, "b" * 64, 4, 5)}
    )
    assert read_manifest(manifest.to_bytes()) == manifest


def test_what_the_next_manifest_does_not_name_is_given_up():
    stored = Stored("versions/1.run.json", 3, "b" * 64, 4, 5)
    first = Manifest("r", 1).following("w", {"run.json": stored}, 1, False)
    second = first.following(
        "w", {"run.json": Stored("versions/2.run.json", 3, "b" * 64, 4, 5)}, 2, False
    )
    assert (first.generation, first.gone) == (1, ())
    assert (second.generation, second.gone) == (2, ("versions/1.run.json",))


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "asys.store/9"},
        {"run_id": "a/b"},
        {"run_id": ".."},
        {"began_unix_ns": -1},
        {"generation": 1.5},
        {"generation": True},
        {"term": -1},
        {"files": []},
        {"gone": ["../a"]},
        *(
            {"files": {name: GOOD}}
            for name in (
                "../a",
                "/a",
                "a//b",
                "",
                ".host.lock",
                "a/.b",
                "a\0b",
                "\ud800",
                "a/" * 20 + "b",
            )
        ),
        {"files": {"a": GOOD, "a/b": GOOD}},
        {"files": {"a": {**GOOD, "object": "../../other/a"}}},
        {"files": {"a": {**GOOD, "sha256": "A" * 64}}},
        {"files": {"a": {**GOOD, "bytes": -1}}},
        {"files": {"a": {**GOOD, "bytes": 1 << 63}}},
        {"files": {"a": None}},
    ],
)
def test_a_damaged_or_hostile_manifest_is_refused(changes):
    assert read_manifest(document()).files["archive/h/a.arrows"].bytes == 3
    with pytest.raises(ManifestError):
        read_manifest(document(**changes))


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_what_is_no_document_is_refused(data):
    with pytest.raises(ManifestError):
        read_manifest(data)
