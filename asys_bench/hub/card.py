"""The model card (README.md) of a repository of SAEs: what they are, what they cost, how to open them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import asys_bench
from asys_bench.hub.facts import HookCost, HubSAE, RunFacts
from asys_bench.hub.loading import blocks_of
from asys_bench.monitors.readable import plural

CARD_FILE = "README.md"
DEFINITIONS: dict[str, tuple[str, str]] = {
    "rows_trained": (
        "rows trained on",
        "Rows of activations that the optimizer has seen, repeats included.",
    ),
    "fvu": (
        "FVU",
        "Fraction of variance unexplained on held-out rows without outliers: the sum of squares of x - x_hat "
        "over that of x - mean. 0 is perfect.",
    ),
    "fvu_all": ("FVU of all rows", "The same with outliers, which pass through unchanged."),
    "l0": ("L0", "Active features per held-out row, mean."),
    "dead_ratio": ("dead", "Share of features that had not fired for long when training ended."),
    "dense_ratio": ("dense", "Share of features active in over 10 % of the held-out rows."),
    "ce_recovered": (
        "CE recovered",
        "(CE_zero - CE_SAE) / (CE_zero - CE): next-token cross entropy of the model with the hook's rows "
        "replaced by the SAE's, 1 as without, 0 as with zeros.",
    ),
    "return_recovered": (
        "return recovered",
        "The same of an agent's mean return: 1 as without the SAE, 0 as with zeros.",
    ),
}
"""Metric -> (its name in the card, what it is)."""
_SHARES = ("dead_ratio", "dense_ratio")
_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+")


def render_card(
    repo: str, saes: Sequence[HubSAE], facts: RunFacts, license_: str | None = None
) -> str:
    """README.md of `repo`. saes: at least one; facts: of their run."""
    parts = [
        "\n".join(_front_matter(facts, license_)),
        f"# {repo.rpartition('/')[2]}",
        _what(saes, facts),
        "## SAEs",
        _sae_table(saes),
        "\n".join(_definitions(saes)),
        *_data(facts),
        *_cost(facts),
        "## How to open one",
        f"`hf download {repo} --local-dir .` brings the folder. Rows are raw: no scaling is left to apply.",
        *_loading(repo, saes),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: RunFacts, license_: str | None) -> Iterator[str]:
    yield "---"
    yield "library_name: saelens"
    yield "tags: [sparse-autoencoder, mechanistic-interpretability, saelens, asys-i]"
    if facts.host == "transformers" and _HUB_MODEL.fullmatch(facts.model):
        yield f"base_model: {facts.model}"
    if license_ is not None:
        yield f"license: {license_}"
    yield "---"


def _what(saes: Sequence[HubSAE], facts: RunFacts) -> str:
    number = "A sparse autoencoder" if len(saes) == 1 else f"{len(saes)} sparse autoencoders"
    model = f" of `{facts.model}`" if facts.model else " of a model"
    when = {True: " while it was trained", False: " while it ran", None: ""}[facts.trains]
    version = facts.versions.get("asys_i", asys_bench.__version__)
    return f"{number} of the activations{model}{when}, trained beside it by A-Sys-I {version}."


def _sae_table(saes: Sequence[HubSAE]) -> str:
    shown = [name for name in DEFINITIONS if any(name in sae.metrics for sae in saes)]
    heads = ["folder", "hook", "architecture", "d_in", "d_sae", "k"]
    heads += [DEFINITIONS[name][0] for name in shown]
    rows = []
    for sae in saes:
        weights = sae.weights
        own = [f"`{sae.folder}`", f"`{_cell(sae.hook)}`", weights.trained_as]
        own += [str(weights.d_in), str(weights.d_sae), str(weights.k or "")]
        rows.append(own + [_figure(name, sae.metrics.get(name)) for name in shown])
    return _table(heads, rows)


def _definitions(saes: Sequence[HubSAE]) -> Iterator[str]:
    yield "k is the number of active features asked for (of BatchTopK and Matryoshka SAEs, the mean)."
    for name, (shown, meaning) in DEFINITIONS.items():
        if any(name in sae.metrics for sae in saes):
            yield f"- **{shown}**: {meaning}"
    if any(sae.weights.outlier_norm is not None for sae in saes):
        yield (
            "- Rows whose norm is above `metadata.outlier_norm` of an SAE's cfg.json (attention sinks) are "
            "outliers: it was not trained on them, and leaves them as they are. SAELens and sparsify do not "
            "know of that; the code for torch alone does it."
        )


def _data(facts: RunFacts) -> Iterator[str]:
    if not facts.host:
        return
    yield "## Data"
    steps = f", {facts.steps:,} {plural(facts.step_unit)}" if facts.steps else ""
    model = f" `{facts.model}`" if facts.model else ""
    yield (
        f"Activations of the model{model} (host `{facts.host}`{steps}), taken by hooks as it ran. The "
        "activations themselves are not in this repository."
    )
    if facts.costs:
        rows = [[f"`{_cell(c.hook)}`", f"{c.calls:,}", f"{c.captured:,}"] for c in facts.costs]
        yield _table(["hook", "calls", "captured"], rows)


def _cost(facts: RunFacts) -> Iterator[str]:
    if not facts.costs:
        return
    yield "## What observing cost the host"
    known = [cost.share for cost in facts.costs if cost.share is not None]
    rate = f" at {facts.steps_per_s:,.4g} {plural(facts.step_unit)}/s" if facts.steps_per_s else ""
    if len(known) == len(facts.costs):
        yield (
            f"The hooks held up the host for {100 * sum(known):.3g} % of its time{rate}. That is time inside "
            "hooks over wall time; what the trainers took from it by sharing its processors is not in it."
        )
    heads = ["hook", "p50 of a captured call, us", "p99, us", "share of the host's time, %"]
    yield _table(heads, [_cost_row(cost) for cost in facts.costs])


def _cost_row(cost: HookCost) -> list[str]:
    share = None if cost.share is None else 100 * cost.share
    figures = [_short(one) for one in (cost.p50_us, cost.p99_us, share)]
    return [f"`{_cell(cost.hook)}`", *figures]


def _short(value: float | None) -> str:
    """Three digits: 0.211, 34.8, 9,440; "" where it is not known."""
    if value is None:
        return ""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _loading(repo: str, saes: Sequence[HubSAE]) -> Iterator[str]:
    """For the first SAE of each kind: others of it differ in their folder alone."""
    seen: set[tuple[str, bool]] = set()
    for sae in saes:
        kind = (sae.weights.architecture, sae.weights.outlier_norm is not None)
        if kind in seen:
            continue
        seen.add(kind)
        yield f"### `{sae.folder}` ({sae.weights.architecture})"
        for what, code in blocks_of(sae, repo):
            yield f"{what}:\n\n```python\n{code}```"


def _table(heads: list[str], rows: Sequence[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "rows_trained":
        return f"{int(value):,}"
    return f"{100 * value:.3g} %" if name in _SHARES else f"{value:.4g}"
