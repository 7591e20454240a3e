"""`observation.json`: what each number of a gymnasium environment's observation is.

Names and units come from the table that an environment's docstring has ("| Num | Observation | ..."),
the words for its two sides from here where gymnasium says them in prose. A reader of a run can then say
"the pole leans right" where it would say "input 2 is 0.1".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from asys_bench.contracts.run_files import OBSERVATION_SCHEMA

MOST_COORDINATES = 512

_WORDS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "CartPoleEnv": (
        ("m", "the cart is left of the centre", "the cart is right of the centre"),
        ("m/s", "the cart moves left", "the cart moves right"),
        ("rad", "the pole leans left", "the pole leans right"),
        ("rad/s", "the pole swings left", "the pole swings right"),
    ),
    "AcrobotEnv": (
        ("", "the upper link points up", "the upper link hangs down"),
        ("", "the upper link is left", "the upper link is right"),
        ("", "the lower link is folded back", "the lower link is stretched"),
        ("", "the lower link bends left", "the lower link bends right"),
        ("rad/s", "the upper link swings clockwise", "the upper link swings anticlockwise"),
        ("rad/s", "the lower link swings clockwise", "the lower link swings anticlockwise"),
    ),
    "PendulumEnv": (
        ("", "the pendulum hangs", "the pendulum stands"),
        ("", "the pendulum is right", "the pendulum is left"),
        ("rad/s", "the pendulum swings clockwise", "the pendulum swings anticlockwise"),
    ),
    "LunarLander": (
        ("", "the lander is left of the pad", "the lander is right of the pad"),
        ("", "the lander is below the pad", "the lander is above the pad"),
        ("", "the lander moves left", "the lander moves right"),
        ("", "the lander falls", "the lander rises"),
        ("rad", "the lander leans right", "the lander leans left"),
        ("rad/s", "the lander turns clockwise", "the lander turns anticlockwise"),
        ("", "", "the left leg touches the ground"),
        ("", "", "the right leg touches the ground"),
    ),
}
"""Environment class -> (unit, what a clearly negative value means, what a positive one means)."""
_NAMES: Mapping[str, Sequence[str]] = {
    "LunarLander": (
        "x", "y", "horizontal velocity", "vertical velocity", "angle", "angular velocity",
        "left leg contact", "right leg contact",
    ),
}  # fmt: skip
"""Names of environments whose docstring has them in prose."""


def observation_document(environment: Any, streams: Sequence[str]) -> dict[str, Any]:
    """The file's contents for a gymnasium environment.

    streams: names that the archived observation can have, the best first.
    """
    space, inner = environment.observation_space, environment.unwrapped
    spec = getattr(environment, "spec", None)
    shape = getattr(space, "shape", None) or ()
    document: dict[str, Any] = {
        "schema": OBSERVATION_SCHEMA,
        "environment": str(getattr(spec, "id", type(inner).__name__)),
        "streams": list(streams),
        "coordinates": [],
        "left_out": "",
    }
    width = math.prod(shape)
    if type(space).__name__ == "Discrete":
        document["coordinates"] = [
            _coordinate(f"state {number}", "", "", "") for number in range(int(space.n))
        ][:MOST_COORDINATES]
    elif type(space).__name__ != "Box":
        document["left_out"] = f"observations are a {type(space).__name__}, not one row of numbers"
    elif len(shape) >= 2 and str(space.dtype) == "uint8":
        document["left_out"] = f"observations are images of shape {tuple(shape)}"
    elif not 1 <= width <= MOST_COORDINATES:
        document["left_out"] = f"observations have {width} numbers, too many to name each"
    else:
        document["coordinates"] = _coordinates(type(inner), width)
    return document


def _coordinates(kind: type, width: int) -> list[dict[str, str]]:
    told = table_of(kind.__doc__ or "", width)
    names = _NAMES.get(kind.__name__, ())
    words = _WORDS.get(kind.__name__, ())
    found = []
    for number in range(width):
        name, unit = told.get(number, (f"observation {number}", ""))
        if len(names) == width:
            name = names[number]
        low = high = ""
        if len(words) == width:
            unit, low, high = words[number]
        found.append(_coordinate(name, unit, low, high))
    return found


def _coordinate(name: str, unit: str, low: str, high: str) -> dict[str, str]:
    return {"name": name, "unit": unit, "low": low, "high": high}


def table_of(docstring: str, width: int) -> dict[int, tuple[str, str]]:
    """Number -> (name, unit) from the observation table of a docstring; empty without one.

    Only a table that numbers all `width` coordinates counts: another one is of other numbers.
    """
    found: dict[int, tuple[str, str]] = {}
    columns: list[str] = []
    for line in docstring.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.strip().startswith("|"):
            columns = []
        elif cells[0].lower() == "num":
            columns = [cell.lower() for cell in cells]
        elif "observation" in columns and cells[0].isdigit():
            row = dict(zip(columns, cells, strict=False))
            unit = next((text for column, text in row.items() if "unit" in column), "")
            found[int(cells[0])] = _plain(row["observation"]), _unit(unit)
    return found if set(range(width)) <= found.keys() else {}


def _plain(name: str) -> str:
    name = re.sub(r"[`*]", "", name).strip()
    first, _, rest = name.partition(" ")
    return f"{first.lower() if first[1:].islower() else first} {rest}".strip().replace(
        " Velocity", " velocity").replace(" Position", " position").replace(" Angle", " angle"
    ).replace(" Angular", " angular")  # fmt: skip


def _unit(text: str) -> str:
    """ "velocity (m/s)" -> "m/s"."""
    inside = re.search(r"\(([^)]*)\)", text)
    return inside[1] if inside else text
