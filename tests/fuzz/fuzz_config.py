"""Configurations made from the JSON Schema, damaged shipped ones and damaged text: a MasterConfig or a
ConfigError. `python fuzz_config.py COUNT SEED` prints what happened as JSON."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from mutate import SCALARS, damage_bytes, damage_tree, places, wrong_value

from asys_bench.config import ConfigError, dump_yaml, load_config
from asys_bench.config.sources import SHIPPED, shipped_names

SLOW_S = 10.0
HOSTILE = (
    "a: &a [*a]\n",
    "a: &a {b: 1}\n<<: [*a, *a]\n",
    "x: &x [1,1,1,1,1,1,1,1,1]\ny: &y [*x,*x,*x,*x,*x,*x,*x,*x]\nz: &z [*y,*y,*y,*y,*y,*y,*y]\n"
    "w: &w [*z,*z,*z,*z,*z,*z,*z]\nv: &v [*w,*w,*w,*w,*w,*w,*w]\nu: [*v,*v,*v,*v,*v,*v,*v]\n",
    "run: !!python/object/apply:os.system ['true']\n",
    "run: !!python/name:os.system\n",
    "run: !!timestamp 2001-99-99\n",
    "run: !!binary '###'\n",
    "run: !!int 'x'\n",
    "- " * 2000 + "1\n",
    "{" * 200 + "\n",
    "extends: [base.yaml, base.yaml]\n",
    "extends: {a: 1}\n",
    "%YAML 9.9\n---\na: 1\n",
    "--- 1\n--- 2\n",
    "? [a]\n: b\n",
    "\ufeff\ufeffrun: {}\n",
    "run:\n\tname: x\n",
)


class Grower:
    """Values that fit a JSON Schema, but for those that are drawn to be wrong."""

    def __init__(self, schema: dict[str, Any], draw: random.Random, wrong: float) -> None:
        self._defs, self._root = schema.get("$defs", {}), schema
        self._draw, self._wrong = draw, wrong

    def grow(self, schema: Any = None, depth: int = 0) -> Any:
        draw = self._draw
        schema = self._root if schema is None else schema
        if not isinstance(schema, dict) or depth > 12 or (depth and draw.random() < self._wrong):
            return wrong_value(draw)
        if "$ref" in schema:
            return self.grow(self._defs.get(schema["$ref"].rsplit("/", 1)[-1], {}), depth + 1)
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return self.grow(draw.choice(schema[choice]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return draw.choice(schema["enum"])
        return self._of_type(schema, depth)

    def _of_type(self, schema: dict[str, Any], depth: int) -> Any:
        draw = self._draw
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = draw.choice(kind)
        if kind == "object" or "properties" in schema:
            known = schema.get("properties", {})
            keys = [k for k in known if k in schema.get("required", ()) or draw.random() < 0.4]
            found = {key: self.grow(known[key], depth + 1) for key in keys}
            extra = schema.get("additionalProperties")
            if isinstance(extra, dict):
                for name in draw.sample(("a", "trainer", "archive", "x.y", "*"), draw.randrange(3)):
                    found[name] = self.grow(extra, depth + 1)
            return found
        if kind == "array":
            items = schema.get("items", {})
            return [self.grow(items, depth + 1) for _ in range(draw.randrange(4))]
        if kind in ("integer", "number"):
            low, high = schema.get("minimum", 0), schema.get("maximum", 1000)
            picked = draw.choice((low, high, low - 1, high + 1, draw.uniform(0, 10)))
            return int(picked) if kind == "integer" else picked
        if kind == "boolean":
            return draw.random() < 0.5
        if kind == "null":
            return None
        if kind == "string":
            return draw.choice(
                ("*", "a", "run-1", "layer.0", "cpu", "0-3", str(draw.choice(SCALARS)))
            )
        return wrong_value(draw)


def texts(draw: random.Random) -> bytes:
    """One configuration file."""
    names = shipped_names()
    kind = draw.randrange(10)
    if kind == 0:
        return draw.choice(HOSTILE).encode("utf-8", "surrogatepass")
    shipped = (SHIPPED / draw.choice(names)).read_bytes()
    if kind <= 2:
        return damage_bytes(shipped, draw)
    if kind <= 5:
        tree = yaml.safe_load(shipped)
        return _yaml(damage_tree(tree, draw, draw.choice((1, 1, 4))))
    schema = json.loads((SHIPPED / "schema" / "master.schema.json").read_text())
    return _yaml(Grower(schema, draw, draw.choice((0.0, 0.02, 0.1))).grow())


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def overrides(draw: random.Random) -> tuple[list[str], dict[str, str]]:
    """`--set`s and environment variables, some of them to real fields."""
    known = [
        ".".join(map(str, p)) for p in places(yaml.safe_load((SHIPPED / "base.yaml").read_text()))
    ]
    sets = []
    for _ in range(draw.choice((0, 0, 0, 0, 0, 0, 1, 3))):
        path = draw.choice(
            (draw.choice(known), "hooks[0].match", "a..b", "hooks[99999999999].x", "")
        )
        value = str(draw.choice(SCALARS)) if draw.random() < 0.7 else "{a: [1, *x]}"
        sets.append(draw.choice((f"{path}={value}", path, f"={value}")))
    env = {}
    if draw.random() < 0.05:
        name = draw.choice(known).replace(".", "__").upper()
        env[f"ASYS__{name}"] = str(draw.choice(SCALARS)).replace("\0", "")
    return sets, env


def main(count: int, seed: str) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="asys-fuzz-") as folder:
        path = Path(folder) / "c.yaml"
        for case in range(count):
            draw = random.Random(f"{seed}-{case}")
            print(case, file=sys.stderr, flush=True)
            path.write_bytes(texts(draw))
            sets, env = overrides(draw)
            begin = time.perf_counter()
            try:
                loaded = load_config(path, sets, env)
                dump_yaml(loaded.config, loaded.provenance)
                outcomes["valid"] += 1
            except ConfigError as error:
                outcomes["ConfigError"] += bool(str(error))
            seconds = time.perf_counter() - begin
            slowest = max(slowest, seconds)
            if seconds > SLOW_S:
                raise SystemExit(f"case {case}: {seconds:.1f} s")
    return {"cases": count, "slowest_s": round(slowest, 3), **outcomes}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2])))
