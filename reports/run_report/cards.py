"""The eyepiece: the most active features of an SAE, each with what it fires on."""

from __future__ import annotations

from collections.abc import Mapping

from asys_bench.reports.page.markup import Markup, flat, name, tag
from asys_bench.reports.page.quantity import number, share
from asys_bench.reports.run_report.analysis import Example, FeatureCard, HookAnalysis
from asys_bench.reports.run_report.coordinate_shifts import TOP
from asys_bench.reports.run_report.feature_figures import decoder_picture, density_histogram
from asys_bench.reports.run_report.input_pictures import (
    field_map,
    observation,
    row,
    sentence,
    strips,
)

HOW_TO_INPUTS = (
    "Observations were not archived, so the activations themselves are drawn. "
    "`capture: [activation, input]` in the hook's configuration archives what the module was given."
)
BESIDE_MAP = 4
"""Examples beside a map: as high as it is."""
HOW_RARE = (
    "Features that fire on less than 1 % of rows, the largest single activation first: what they "
    "stand for is often the plainest."
)


def sae_section(found: HookAnalysis, environment_id: str, vocabulary: Mapping[int, str]) -> Markup:
    """One SAE: densities, map and feature cards."""
    about = (
        f"{found.architecture}, {found.d_in} values in, {found.d_sae:,} features"
        if found.d_sae
        else ""
    )
    if found.outlier_norm is not None:
        about += f", rows with a norm above {number(found.outlier_norm)} left as they are"
    head = tag("h3", name(found.hook), tag("span", about, class_="unit") if about else None)
    parts: list[Markup] = [head]
    if found.problem:
        parts.append(tag("p", found.problem, class_="callout"))
    labelled = [card.feature for card in found.cards]
    figures = [density_histogram(found.stats)] if found.stats is not None else []
    if found.plane is not None:
        figures.append(decoder_picture(found.plane, found.stats, labelled))
    if found.cards:
        parts.append(tag("p", _how(found), class_="how"))
        cards = [_card(card, found, environment_id, vocabulary) for card in found.cards]
        parts.append(tag("div", *cards, class_="cards"))
    if found.rare:
        parts.append(tag("h4", "Rare and strong", class_="rare"))
        parts.append(tag("p", HOW_RARE, class_="how"))
        cards = [_card(card, found, environment_id, vocabulary) for card in found.rare]
        parts.append(tag("div", *cards, class_="cards"))
    if figures:  # after what they summarise: a reader wants to see a feature first
        parts.append(tag("div", *figures, class_="figures level"))
    return tag("section", *parts, class_="family")


def _how(found: HookAnalysis) -> Markup:
    examples = [example for card in found.cards for example in card.examples]
    if any(example.tokens is not None for example in examples):
        words = (
            "The most active features. The underlined token is the one that the feature fires on; "
            "every token's colour is how strongly it fires there, the deeper the stronger."
        )
    elif any(example.observation is not None for example in examples):
        words = (
            "What the model saw when each feature fired most, the strongest first; rows that look "
            "alike are shown once."
        )
        if any(card.field is not None for card in found.cards):
            words += (
                " The map shows where it fires: mean activation over the two coordinates that "
                "explain it best."
            )
        if any(card.coordinate_shifts for card in found.cards):
            words += (
                f" Below it, coordinate by coordinate: all states in grey, the {TOP} that it fires on "
                "most in colour. The heading says in which coordinates these two differ most "
                "(Kolmogorov-Smirnov, p < 0.001)."
            )
    elif found.left_out:
        return tag("span", f"Observations are not drawn: {found.left_out}.")
    else:
        return tag("span", HOW_TO_INPUTS)
    return tag("span", words)


def _card(
    card: FeatureCard, found: HookAnalysis, environment_id: str, vocabulary: Mapping[int, str]
) -> Markup:
    facts = tag(
        "p",
        tag("span", f"feature {card.feature}") if card.words else None,
        tag("span", f"{share(card.density)} of rows"),
        tag("span", f"mean {number(card.mean)}"),
        tag("span", f"max {number(card.highest)}"),
        class_="facts-line",
    )
    shown = card.examples if card.field is None else card.examples[:BESIDE_MAP]
    texts = [example for example in card.examples if example.tokens is not None]
    if texts:
        body = flat(
            sentence(example.tokens, vocabulary, example.activation, card.highest)
            for example in texts
            if example.tokens is not None
        )
    else:
        body = tag(
            "ul",
            *(_look(example, card, found, environment_id) for example in shown),
            class_="looks",
        )
    if card.field is not None:
        body = tag("div", field_map(card.field, found.coordinates), body, class_="eyepiece")
    below = strips(card.coordinate_shifts, found.coordinates) if card.coordinate_shifts else None
    title = card.words[:1].upper() + card.words[1:] if card.words else f"feature {card.feature}"
    kind = "card feature told" if card.words else "card feature"
    return tag("article", tag("h4", title), facts, body, below, class_=kind)


def _look(example: Example, card: FeatureCard, found: HookAnalysis, environment_id: str) -> Markup:
    if example.observation is not None:
        picture = observation(
            example.observation, environment_id, found.look_range, found.coordinates
        )
    else:
        picture = row(example.values, found.look_range)
    strength = max(2.0, 100 * example.activation / card.highest) if card.highest > 0 else 2.0
    bar = tag("span", style=f"width:{strength:.0f}%", class_="strength")
    under = tag("span", number(example.activation), title=f"host step {example.host_step:,}")
    return tag("li", picture, tag("span", bar, class_="gauge"), under)
