"""What a host gives an evaluation: its model with its weights, ready to run in a process of its own.

`HostPlugin.evaluated` makes one of the host's options, without a clock, a bus or workers. Weights of a
host that trains come from the folder that `BaseHost.save_weights` wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EvaluatedText:
    """A text model in eval mode.

    model: the module in which the run's hook names are modules.
    run: calls it on (ids int64[B, T], mask int64[B, T]).
    logits: the same, for the logits float[B, T, V] of the next tokens; None: it predicts none.
    batches: of at least so many tokens, the same ones each time; (ids, mask).
    about: what the text and the weights are, for the report.
    """

    model: torch.nn.Module
    run: Callable[[torch.Tensor, torch.Tensor], Any]
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    batches: Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    about: dict[str, Any]


@dataclass(frozen=True)
class EvaluatedAgent:
    """An agent and an environment of its own.

    model: as of `EvaluatedText`.
    agent: a `sae.evaluation.policy.Agent`.
    environment: one of gymnasium's interface.
    """

    model: torch.nn.Module
    agent: Any
    environment: Any
    about: dict[str, Any]


Evaluated = EvaluatedText | EvaluatedAgent
