"""A synthetic host whose features switch on, move and die at planted steps, and how the timeline does on it.

    python tests/stress/planted_births.py

SEEDS (0-9), ROWS (1048576), D_SAE (512), CASE (planted; stationary: nothing changes, and neither halves of a
run nor two runs of other seeds differ; diff: one feature more in the second of two runs), OUT (a JSON file)
are taken from the environment. With files as arguments: the report of all of them together. One setting for
all: nothing here is chosen by what comes out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2

from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows, kept_values, moment_hash, ranks
from asys_bench.change.reservoir.windows import WindowedSample, rows_per_window
from asys_bench.change.timeline.difference import Side, compared
from asys_bench.change.timeline.earlier import unpacked, with_earlier
from asys_bench.change.timeline.timeline import timeline_of
from asys_bench.rundir.timeline_document import FeatureLife, Timeline
from asys_bench.sae import SAEConfig, SAETrainer, SparseAutoencoder
from asys_bench.sae.evaluation.synthetic import SyntheticFeatures

D_IN, BASE, STEP_ROWS, PACKET_STEPS = 128, 96, 16, 64
BIRTHS, DEATHS, DRIFTS = 22, 4, 3
LEAST_RATE, MOST_RATE = 1e-3, 1e-1
NOISE, LOOKS = 0.03, 4
MATCH_COSINE, WITHIN = 0.8, 0.02
"""Of a plant and a life, and how far their births may be apart, as a share of the run."""


@dataclass(frozen=True)
class Plant:
    """rate from `start` to `end` (shares of the run); its direction goes from `begin_D` to `end_D` between
    the two shares of `moves`."""

    kind: str
    rate: float
    start: float
    end: float
    begin_D: torch.Tensor
    end_D: torch.Tensor
    moves: tuple[float, float] = (0.0, 0.0)

    def direction(self, share: float) -> torch.Tensor:
        begin, end = self.moves
        if end <= begin or share <= begin:
            return self.begin_D if end > begin else self.end_D
        turn = min(1.0, (share - begin) / (end - begin)) * np.pi / 2
        return self.begin_D * float(np.cos(turn)) + self.end_D * float(np.sin(turn))


def plants_of(seed: int) -> list[Plant]:
    draws = np.random.default_rng(10_000 + seed)
    generator = torch.Generator().manual_seed(77_000 + seed)

    def direction(against: torch.Tensor | None = None) -> torch.Tensor:
        made = torch.randn(D_IN, generator=generator)
        if against is not None:
            made = made - (made @ against) * against
        return made / made.norm()

    def rate() -> float:
        return float(np.exp(draws.uniform(np.log(LEAST_RATE), np.log(MOST_RATE))))

    found = []
    for number in range(BIRTHS):
        start = float(draws.uniform(0.1, 0.85))
        dies = number % 4 == 3 and start < 0.6
        end = float(draws.uniform(start + 0.25, 1.0)) if dies else 1.0
        one = direction()
        found.append(Plant("birth", rate(), start, end, one, one))
    for _ in range(DEATHS):
        one = direction()
        found.append(Plant("death", rate(), 0.0, float(draws.uniform(0.3, 0.9)), one, one))
    for _ in range(DRIFTS):
        one, at = direction(), float(draws.uniform(0.1, 0.6))
        found.append(Plant("drift", rate(), 0.0, 1.0, one, direction(one), (at, at + 0.3)))
    return found


class Stream:
    """Packets of `PACKET_STEPS` host steps of `STEP_ROWS` rows."""

    def __init__(self, seed: int, rows: int, plants: list[Plant], world: int | None = None) -> None:
        """world: seed of the features that are always there; None: `seed`."""
        self.rows, self.plants = rows, plants
        world = seed if world is None else world
        base = SyntheticFeatures(BASE, D_IN, mean_l0=5.0, seed=world)
        self._base_GD, self._rate_G = base.directions_GD, base.rate_G
        self._generator = torch.Generator().manual_seed(5_000 + seed)

    @property
    def steps(self) -> int:
        return self.rows // STEP_ROWS

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first host step, rows)."""
        count, g = STEP_ROWS * PACKET_STEPS, self._generator
        for first in range(0, self.rows - count + 1, count):
            share_N = (first + np.arange(count)) / self.rows
            rate_NG = self._rate_G.expand(count, -1)
            table_GD = self._base_GD
            if self.plants:
                on = np.stack([(p.start <= share_N) & (share_N < p.end) for p in self.plants], 1)
                rate = torch.tensor([p.rate for p in self.plants]) * torch.from_numpy(on)
                rate_NG = torch.cat([rate_NG, rate.float()], 1)
                here = torch.stack([p.direction(float(share_N[0])) for p in self.plants])
                table_GD = torch.cat([table_GD, here])
            active = torch.rand(rate_NG.shape, generator=g) < rate_NG
            size = torch.rand(rate_NG.shape, generator=g).add_(0.5)
            noise = torch.randn(count, D_IN, generator=g) * NOISE
            yield first // STEP_ROWS, (size * active) @ table_GD + noise


def keep(sample: WindowedSample, first_step: int, rows_ND: torch.Tensor) -> None:
    """As the sink `reservoir` does with the packets of a lease."""
    step_P = first_step + np.arange(len(rows_ND) // STEP_ROWS)
    step_N = np.repeat(step_P, STEP_ROWS)
    row_N = np.tile(np.arange(STEP_ROWS), len(step_P))
    rank_N = ranks(np.repeat(moment_hash(step_P), STEP_ROWS), row_N, np.ones(len(row_N)))
    wanted = np.flatnonzero(rank_N < np.repeat(sample.limits(step_P), STEP_ROWS))
    table = np.zeros(len(wanted), ABOUT)
    table["host_step"], table["row"], table["rank"] = step_N[wanted], row_N[wanted], rank_N[wanted]
    table["weight"], table["sequence"] = 1.0, -1
    sample.extend(ReservoirRows(kept_values(rows_ND[torch.from_numpy(wanted)]), table))


@dataclass
class Outcome:
    """Of one seed."""

    seed: int
    rows: int
    lives: int
    planted: int = 0
    births: list[dict[str, Any]] = field(default_factory=list)
    """Declared ones, with what they match by the direction that appeared (`FeatureLife.appeared`)."""
    by_decoder: list[dict[str, Any]] = field(default_factory=list)
    """The same by the decoder row of each life."""
    missed: list[dict[str, Any]] = field(default_factory=list)
    turned: int = 0
    withdrawn: int = 0
    """Births of earlier looks that a later one took back."""
    twins: int = 0
    """Births left out at the last look as split off from another one."""
    late: list[dict[str, float]] = field(default_factory=list)
    trainer_s: float = 0.0
    reservoir_s: float = 0.0
    timeline_s: float = 0.0
    pass_rows: int = 0
    halves: int | None = None
    """Differences between the halves of a run in which nothing changes, of `lives` features."""
    pair: int | None = None
    """Between two such runs of other seeds, of twice as many."""
    first_difference: dict[str, Any] | None = None


def trained(
    seed: int,
    rows: int,
    d_sae: int,
    plants: list[Plant],
    world: int | None = None,
    look: Callable[[SAETrainer, WindowedSample, Outcome], None] | None = None,
) -> tuple[SAETrainer, WindowedSample, Outcome]:
    config = SAEConfig(architecture="batchtopk", d_sae=d_sae, k=6, batch_rows=512, seed=seed)
    trainer = SAETrainer(config, hook_name="planted")
    sample = WindowedSample(rows_per_window(2 * D_IN + 64, 192 << 20), None)
    stream = Stream(seed, rows, plants, world)
    outcome = Outcome(seed, rows, d_sae, planted=sum(p.kind == "birth" for p in plants))
    for first, rows_ND in stream:
        begin = time.process_time()
        trainer.ingest(rows_ND, (0, 0, first), host_step=first + PACKET_STEPS - 1)
        trainer.train()
        middle = time.process_time()
        keep(sample, first, rows_ND)
        outcome.trainer_s += middle - begin
        outcome.reservoir_s += time.process_time() - middle
        done = first * STEP_ROWS + len(rows_ND)
        if look is not None and done * LOOKS // rows > first * STEP_ROWS * LOOKS // rows:
            look(trainer, sample, outcome)
    return trainer, sample, outcome


def looked(trainer: SAETrainer, rows: ReservoirRows, before: Timeline | None) -> Timeline:
    """As `asys-run timeline` does with a run that goes on."""
    sae = trainer.sae
    assert sae is not None
    found = timeline_of(sae, trainer.lives, rows)
    if before is None:
        return found
    return with_earlier(found, before, torch.nn.functional.normalize(sae.W_dec.detach(), dim=1))


def judged(sae: SparseAutoencoder, told: Timeline, plants: list[Plant], outcome: Outcome) -> None:
    """Match declared births with plants. told: of the last look, with what earlier ones saw."""
    steps = outcome.rows // STEP_ROWS
    W_FD = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    outcome.turned, outcome.withdrawn = told.counts["turned"], len(told.withdrawn)
    outcome.twins = sum(one.duplicate_of is not None for one in told.lives)
    outcome.births, taken = matched(told, plants, steps, lambda one: one.appeared or one.direction)
    outcome.by_decoder, _ = matched(told, plants, steps, lambda one: one.direction)
    for entry in outcome.births:
        if entry["match"] == "yes":
            found_late = entry["found_step"] / steps - plants[entry["plant"]].start
            if entry["generation"] and found_late > 0.01:
                outcome.late.append({"life": found_late, "timeline": abs(entry["error"])})
    for index, plant in enumerate(plants):
        if plant.kind == "birth" and index not in taken:
            cosine_F = W_FD @ plant.end_D
            best = int(cosine_F.argmax())
            life = _life_of(told, best)
            outcome.missed.append({
                "plant": index, "rate": plant.rate, "start": plant.start, "end": plant.end,
                "cosine": float(cosine_F[best]), "verdict": life.verdict, "p": life.born_p,
                "found": life.found_step / steps, "generation": life.generation,
                "born": None if life.born_step is None else life.born_step / steps,
            })  # fmt: skip


def matched(
    told: Timeline, plants: list[Plant], steps: int, direction: Callable[[FeatureLife], str]
) -> tuple[list[dict[str, Any]], set[int]]:
    """(the births with the plant that each is of by one of its directions, the plants that have one)."""
    births: list[dict[str, Any]] = []
    taken: set[int] = set()
    end_GD = torch.stack([p.direction(1.0) for p in plants]) if plants else torch.zeros(0, D_IN)
    for one in sorted(told.births, key=lambda one: one.born_p):
        direction_D = unpacked(direction(one))
        assert one.born_step is not None
        assert direction_D is not None
        cosine_G = end_GD @ torch.from_numpy(direction_D) if plants else torch.zeros(0)
        best = int(cosine_G.argmax()) if plants else -1
        plant = plants[best] if plants and float(cosine_G[best]) >= MATCH_COSINE else None
        entry = {
            "feature": one.feature, "p": one.born_p, "step": one.born_step, "generation": one.generation,
            "found_step": one.found_step, "look_step": one.look_step,
            "cosine": float(cosine_G[best]) if plants else 0.0,
            "plant": best if plant is not None else None,
            "kind": plant.kind if plant is not None else None,
            "error": one.born_step / steps - plant.start if plant is not None else None,
            "rate": plant.rate if plant is not None else None,
        }  # fmt: skip
        good = plant is not None and plant.kind == "birth" and abs(entry["error"]) <= WITHIN
        entry["match"] = "no" if not good else "duplicate" if best in taken else "yes"
        if good:
            taken.add(best)
        births.append(entry)
    return births, taken


def _life_of(told: Timeline, feature: int) -> FeatureLife:
    """As the SAE of now has it; of what is not listed nothing changed."""
    listed = (one for one in told.lives if one.feature == feature and one.look_step is None)
    return next(listed, FeatureLife(feature, "always"))


def run(seed: int, rows: int, d_sae: int) -> Outcome:
    """Looked at `LOOKS` times, as a person would who watches: a life that ends before the run does is in
    none of the SAE's weights at its end."""
    plants = plants_of(seed)
    told: Timeline | None = None

    def look(trainer: SAETrainer, sample: WindowedSample, outcome: Outcome) -> None:
        nonlocal told
        begin = time.process_time()
        kept = sample.rows()
        assert kept is not None
        outcome.pass_rows = len(kept)
        told = looked(trainer, kept, told)
        outcome.timeline_s += time.process_time() - begin

    trainer, _, outcome = trained(seed, rows, d_sae, plants, look=look)
    assert trainer.sae is not None
    assert told is not None
    judged(trainer.sae, told, plants, outcome)
    return outcome


def side(name: str, trainer: SAETrainer, rows: ReservoirRows) -> Side:
    return Side(name, rows, trainer.sae)


def stationary(seed: int, rows: int, d_sae: int, before: Side | None) -> tuple[Outcome, Side]:
    """A run without any change. Seeds 2n and 2n + 1 are of one world; before: that of the seed before."""
    trainer, sample, outcome = trained(seed, rows, d_sae, [], world=seed // 2)
    begin = time.process_time()
    kept = sample.rows()
    assert kept is not None
    outcome.pass_rows = len(kept)
    sae = trainer.sae
    assert sae is not None
    told = looked(trainer, kept, None)
    outcome.timeline_s = time.process_time() - begin
    judged(sae, told, [], outcome)
    own = side(f"seed {seed}", trainer, kept)
    middle = len(kept) // 2
    halves = compared(
        replace(own, name="first", rows=kept[:middle]), Side("second", kept[middle:], None)
    )
    outcome.halves = len(halves.differences)
    if seed % 2 and before is not None:
        outcome.pair = len(compared(before, own).differences)
    return outcome, own


def with_a_difference(seed: int, rows: int, d_sae: int) -> Outcome:
    """Two runs of one world, of which the second has a feature more from its begin on."""
    generator = torch.Generator().manual_seed(31_000 + seed)
    extra_D = torch.nn.functional.normalize(torch.randn(D_IN, generator=generator), dim=0)
    rate = float(np.exp(np.random.default_rng(seed).uniform(np.log(5e-3), np.log(5e-2))))
    plant = Plant("extra", rate, 0.0, 1.0, extra_D, extra_D)
    sides = []
    for number, plants in enumerate(([], [plant])):
        trainer, sample, outcome = trained(2 * seed + number + 500, rows, d_sae, plants, world=seed)
        kept = sample.rows()
        assert kept is not None
        sides.append(side("ab"[number], trainer, kept))
    found = compared(*sides).differences
    outcome.pair = len(found)
    if found:
        sae = next(one.sae for one in sides if one.name == found[0].of)
        assert sae is not None
        direction_D = torch.nn.functional.normalize(sae.W_dec.detach()[found[0].feature], dim=0)
        outcome.first_difference = {
            "cosine": float(direction_D @ extra_D), "rate": rate, "rate_a": found[0].rate_a,
            "rate_b": found[0].rate_b, "p": found[0].p,
        }  # fmt: skip
    return outcome


def interval(values: list[float], weights: list[float]) -> tuple[float, float, float]:
    """sum(values) / sum(weights) with a bootstrap over seeds: (value, 2.5 %, 97.5 %)."""
    v, w = np.array(values, float), np.array(weights, float)
    draws = np.random.default_rng(0).integers(0, len(v), (4000, len(v)))
    drawn = v[draws].sum(1) / np.maximum(w[draws].sum(1), 1e-12)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(v.sum() / max(w.sum(), 1e-12)), float(low), float(high)


def report(outcomes: list[Outcome]) -> None:
    planted = [o.planted for o in outcomes]
    told = [len(o.births) for o in outcomes]
    lives = sum(o.lives for o in outcomes)
    print(
        f"{len(outcomes)} seeds, {sum(planted)} births planted, {sum(told)} declared, {lives} lives"
    )
    if sum(planted):
        _report_planted(outcomes, planted)
    _report_false("births", sum(told), lives if not sum(planted) else 0)
    halves = [o for o in outcomes if o.halves is not None]
    _report_false("differences of halves", sum(o.halves or 0 for o in halves), d_sae_of(halves))
    pairs = [o for o in outcomes if o.pair is not None and o.first_difference is None]
    _report_false("differences of seeds", sum(o.pair or 0 for o in pairs), 2 * d_sae_of(pairs))
    found = [o.first_difference for o in outcomes if o.first_difference is not None]
    if found:
        first = sum(one["cosine"] >= MATCH_COSINE for one in found)
        print(f"planted difference is the largest in {first} of {len(found)} pairs of runs")
    spent = {
        name: sum(getattr(o, name) for o in outcomes)
        for name in ("trainer_s", "reservoir_s", "timeline_s")
    }
    million = sum(o.rows for o in outcomes) / 1e6
    print("CPU seconds per million rows:", ", ".join(
        f"{name} {value / million:.2f} ({value / max(1e-9, spent['trainer_s']):.3f} of the trainer's)"
        for name, value in spent.items()
    ), f"; the pass is over {outcomes[0].pass_rows} rows")  # fmt: skip


def d_sae_of(outcomes: list[Outcome]) -> int:
    return sum(one.lives for one in outcomes)


def _report_false(what: str, false: int, lives: int) -> None:
    if lives:
        limit = float(chi2.ppf(0.95, 2 * false + 2)) / 2
        told = f"upper 95 % limit {1000 * limit / lives:.2f} per 1,000"
        print(f"false {what}: {false} of {lives} features: {told}")


def _report_planted(outcomes: list[Outcome], planted: list[int]) -> None:
    for by, births_of in (
        ("what appeared", [o.births for o in outcomes]),
        ("decoder rows", [o.by_decoder for o in outcomes]),
    ):
        yes = [sum(b["match"] == "yes" for b in births) for births in births_of]
        right = [sum(b["match"] != "no" for b in births) for births in births_of]
        told = [len(births) for births in births_of]
        for name, values, weights in (
            ("recall", yes, planted),
            ("precision, duplicates right", right, told),
            ("precision, duplicates wrong", yes, told),
        ):
            value, low, high = interval(values, weights)
            share = f"({sum(values)} of {sum(weights)})"
            print(f"by {by}: {name} {value:.3f} [{low:.3f}, {high:.3f}] {share}")
    births = [birth for outcome in outcomes for birth in outcome.births]
    errors = [abs(birth["error"]) for birth in births if birth["match"] == "yes"]
    if errors:
        middle, high = np.quantile(errors, [0.5, 0.9])
        print(
            f"error of a birth, as a share of the run: median {middle:.4f}, 90 % below {high:.4f}"
        )
    late = [one for outcome in outcomes for one in outcome.late]
    if late:
        life, line = (np.median([one[name] for one in late]) for name in ("life", "timeline"))
        print(
            f"{len(late)} found late: median error of the life {life:.4f}, of the timeline {line:.4f}"
        )
    for kind in ("birth", "drift", "death", None):
        wrong = sum(birth["kind"] == kind and birth["match"] == "no" for birth in births)
        print(f"  wrong births that are {kind or 'no plant'}: {wrong}")
    print(f"withdrawn by a later look: {sum(o.withdrawn for o in outcomes)}")


def seeds_of(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> int:
    if sys.argv[1:]:
        parts = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
        report([Outcome(**one) for part in parts for one in part])
        return 0
    torch.set_num_threads(1)
    rows, d_sae = int(os.environ.get("ROWS", 1 << 20)), int(os.environ.get("D_SAE", 512))
    case, before = os.environ.get("CASE", "planted"), None
    outcomes: list[Outcome] = []
    for seed in seeds_of(os.environ.get("SEEDS", "0-9")):
        if case == "planted":
            outcomes.append(run(seed, rows, d_sae))
        elif case == "stationary":
            outcome, before = stationary(seed, rows, d_sae, before)
            outcomes.append(outcome)
        else:
            outcomes.append(with_a_difference(seed, rows, d_sae))
        report(outcomes)
        print(flush=True)
        if "OUT" in os.environ:
            Path(os.environ["OUT"]).write_text(
                json.dumps([asdict(one) for one in outcomes], indent=1)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
