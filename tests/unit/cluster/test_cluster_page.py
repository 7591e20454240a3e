"""docs/cluster.md: its sizes are what they are said to be computed from, its words those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from asys_bench.cluster.identities import Verdict
from asys_bench.cluster.outbox import Dropped

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/cluster.md").read_text()
GPUS, PEAK_FLOPS, USED = 8, 989e12, 0.4
PORT_BYTES = 100e9 / 8


def tables():
    """Rows of cells, by the first column's head."""
    found, head = {}, None
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line[:1] == "|" else None
        if cells is None:
            head = None
        elif head is None:
            head = cells[0]
            found[head] = []
        elif not set(line) <= set("|-: "):
            found[head].append(cells)
    return found


def test_the_sizes_are_those_of_the_formula():
    rows = tables()["model"]
    assert len(rows) == 5
    for model, width, tokens, nbytes, flow, share, share_400, small in rows:
        tokens_per_s = GPUS * USED * PEAK_FLOPS / (6 * float(model.removesuffix("B")) * 1e9)
        assert tokens == f"{tokens_per_s:,.0f}"
        assert nbytes == f"{2 * int(width):,}"
        per_s = tokens_per_s * 2 * int(width)
        assert flow == f"{per_s / 1e6:,.0f}"
        assert share == f"{100 * per_s / PORT_BYTES:.1f} %"
        assert share_400 == f"{100 * per_s / PORT_BYTES / 4:.1f} %"
        assert small == f"{100 * per_s / 8 / PORT_BYTES:.1f} %"


def test_what_a_sae_takes_is_two_products_for_a_token_and_six_to_train():
    encode, train = 2 * 8192 * 262_144, 12 * 8192 * 262_144
    assert f"takes {encode / 1e9:.1f} GFLOP per token" in PAGE
    assert f"and {train / 1e9:.0f} to train densely" in " ".join(PAGE.split())
    assert 15_000 < USED * PEAK_FLOPS / train < 15_500


def test_every_verdict_is_explained():
    section = PAGE[PAGE.index("## What is counted") : PAGE.index("## Watching it")]
    told = set(re.findall(r"\*([a-z ]+?)(?: N)?\*", section))
    assert {str(verdict) for verdict in Verdict} <= told


def test_every_reason_for_a_drop_is_explained():
    assert {row[0] for row in tables()["reason for a drop"]} == {str(one) for one in Dropped}
