"""Names that a model proposed, as the pages get them: good ones alone, and never before a person's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from asys_bench.eye import eye as module
from asys_bench.eye.eye import Eye
from asys_bench.rundir.feature_names import ProposedName, names_file, write_names

from .conftest import ADDRESS, HOOK, HOSTILE

ORIGIN = {"Origin": ADDRESS}


def name(text: str, score: float = 0.9, **more: Any) -> ProposedName:
    return ProposedName(
        **{
            "name": text, "score": score, "baseline": 0.7, "graded": True, "model": "a-model",
            "checkpoint": "step_000000010", "generation": 0, "shown": 10, "fires": 10, "silent": 9,
            "unix_ns": 1, **more,
        }
    )  # fmt: skip


def table(client: TestClient) -> dict[str, Any]:
    return client.get("/api/table", params={"sae": HOOK}).json()


def feature(client: TestClient, number: int) -> dict[str, Any]:
    return client.get("/api/feature", params={"sae": HOOK, "feature": number}).json()


def test_a_good_name_is_shown_with_its_score_and_a_bad_one_nowhere(
    own_client, own_run: Path
) -> None:
    write_names(own_run, HOOK, {3: name("colours"), 4: name("guessed", 0.74)})
    assert table(own_client)["names"] == {
        "3": {"name": "colours", "score": 0.9, "baseline": 0.7, "model": "a-model", "texts": 19,
              "checkpoint": "step_000000010", "graded": True},
    }  # fmt: skip
    assert feature(own_client, 3)["proposed"]["score"] == 0.9
    assert feature(own_client, 4)["proposed"] is None
    for text, found in (("colo", [3]), ("guess", [])):
        hits = own_client.get("/api/search", params={"text": text}).json()["found"]
        assert [(hit["feature"], hit["where"]) for hit in hits] == [
            (n, "its proposed name") for n in found
        ]
    assert hits == []


def test_a_persons_name_always_wins(own_client, own_run: Path) -> None:
    write_names(own_run, HOOK, {3: name("colours")})
    own_client.post("/api/mark", json={"sae": HOOK, "feature": 3, "name": "mine"}, headers=ORIGIN)
    found = own_client.get("/api/search", params={"text": "mine"}).json()["found"]
    assert [(hit["feature"], hit["name"], hit["proposed"]) for hit in found] == [(3, "mine", None)]
    assert own_client.get("/api/search", params={"text": "colours"}).json()["found"] == []
    own_client.post("/api/mark", json={"sae": HOOK, "feature": 3, "name": ""}, headers=ORIGIN)
    (found,) = own_client.get("/api/search", params={"text": "colours"}).json()["found"]
    assert (found["name"], found["proposed"]["score"]) == ("colours", 0.9)


def test_neighbours_have_their_names(own_client, own_run: Path) -> None:
    write_names(own_run, HOOK, {n: name(f"name {n}") for n in range(32)})
    assert [one["name"] for one in feature(own_client, 3)["neighbours"]] == [
        f"name {one['feature']}" for one in feature(own_client, 3)["neighbours"]
    ]


def test_a_name_of_an_earlier_life_is_not_shown(own_client, own_run: Path) -> None:
    write_names(own_run, HOOK, {3: name("colours", generation=1), 4_000: name("no such feature")})
    assert table(own_client)["names"] == {}


def test_markup_in_a_name_arrives_as_text(own_client, own_run: Path) -> None:
    write_names(own_run, HOOK, {3: name(HOSTILE)})
    assert table(own_client)["names"]["3"]["name"] == HOSTILE
    answer = own_client.get("/api/search", params={"text": "onerror"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["found"][0]["name"] == HOSTILE


def test_names_that_are_written_while_a_page_is_open_are_seen(own_client, own_run: Path) -> None:
    assert table(own_client)["names"] == {}
    write_names(own_run, HOOK, {3: name("colours")})
    assert set(table(own_client)["names"]) == {"3"}
    write_names(own_run, HOOK, {3: name("colours"), 5: name("numbers")})
    assert set(table(own_client)["names"]) == {"3", "5"}


@pytest.mark.parametrize("text", ["{", json.dumps({"schema": "asys.names/1", "features": {}})])
def test_a_damaged_file_is_said_and_hides_nothing_else(
    own_client, own_run: Path, text: str
) -> None:
    write_names(own_run, HOOK, {})
    names_file(own_run, HOOK).write_text(text)
    found = table(own_client)
    assert "names" in found["marks_problem"]
    assert found["d_sae"] == 32


def test_a_file_is_read_once_as_long_as_nobody_replaces_it(
    own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_names(own_run, HOOK, {3: name("colours")})
    eye = Eye(own_run)
    eye.table(HOOK)

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("asys_bench.eye.proposed.read_names", fail)
    assert set(eye.table(HOOK)["names"]) == {"3"}
    assert module.ProposedNames(own_run)._version(HOOK) is not None
