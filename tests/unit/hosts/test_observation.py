"""`observation.json`: names, units and words of the numbers of an environment's observation."""

from __future__ import annotations

import json

import pytest

gymnasium = pytest.importorskip("gymnasium")

from asys_bench.hosts.observation import observation_document, table_of  # noqa: E402


def coordinates(name: str) -> list[dict[str, str]]:
    environment = gymnasium.make(name)
    try:
        document = observation_document(environment, ["x"])
    finally:
        environment.close()
    assert json.loads(json.dumps(document)) == document
    return document["coordinates"]


@pytest.mark.parametrize(
    ("environment", "names", "units"),
    [
        (
            "CartPole-v1",
            ["cart position", "cart velocity", "pole angle", "pole angular velocity"],
            ["m", "m/s", "rad", "rad/s"],
        ),
        (
            "Pendulum-v1",
            ["x = cos(theta)", "y = sin(theta)", "angular velocity"],
            ["", "", "rad/s"],
        ),
        (
            "MountainCar-v0",
            ["position of the car along the x-axis", "velocity of the car"],
            ["m", "v"],
        ),
    ],
)
def test_names_and_units_come_from_gymnasium(environment, names, units):
    found = coordinates(environment)
    assert [one["name"] for one in found] == names
    assert [one["unit"] for one in found] == units


def test_both_sides_of_a_cart_pole_have_words():
    assert [(one["low"], one["high"]) for one in coordinates("CartPole-v1")][2] == (
        "the pole leans left",
        "the pole leans right",
    )
    assert len(coordinates("Acrobot-v1")) == 6


def test_a_lunar_lander_has_names_where_it_is_installed():
    pytest.importorskip("Box2D")
    assert coordinates("LunarLander-v3")[4]["high"] == "the lander leans left"


def test_discrete_states_are_numbered_as_one_hot_rows():
    assert [one["name"] for one in coordinates("FrozenLake-v1")][:2] == ["state 0", "state 1"]


class Pictures:
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), "uint8")
    spec = None
    unwrapped = None


def test_images_are_left_out_with_a_line():
    document = observation_document(Pictures(), [])
    assert document["coordinates"] == []
    assert document["left_out"] == "observations are images of shape (8, 8, 3)"


def test_a_table_of_other_numbers_names_nothing():
    table = "| Num | Observation |\n|---|---|\n| 0 | a |\n| 1 | b |\n"
    assert table_of(table, 2) == {0: ("a", ""), 1: ("b", "")}
    assert table_of(table, 3) == {}
    assert table_of("| Num | Action |\n|---|---|\n| 0 | push |", 1) == {}
