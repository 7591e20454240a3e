"""Rank 0's learner: what a trainer asks of a `Learner`, done by all ranks of a group together.

The SAE begins, and is restored, whole in rank 0's memory by the `Learner` that a training of one process
has; its state is then spread over the ranks (`_spread`), each of which has a `Learner` of its part. A
checkpoint gathers them again, so it is the file that one process would write, and a group of any size goes on
from it. Rows, their reservoir and statistics, held-out rows and all draws stay with rank 0: the others do
what they are told (`serve`), so no rank is ever a step ahead of the others, or waits for one that has ended.
"""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder, StepResult, WholeBatch
from asys_bench.sae.architectures.scaling import RowScaling
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, pick
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.group.state import feature_axis, joined, part_of, whole_of
from asys_bench.sae.metrics import SAEMetrics, firing_rates, measure
from asys_bench.sae.ranks import Collectives
from asys_bench.sae.training.device import CPU, DeviceMemoryError, TrainingDevice
from asys_bench.sae.training.learner import Learner
from asys_bench.sae.training.lives import FeatureLives
from asys_bench.sae.training.schedule import SparsityController

Command = dict[str, Any]
"""JSON values: `do` says what, `key` to which learner."""


class TrainerGroup(Protocol):
    """The ranks of a group as rank 0 has them. Every method raises GroupError when one has failed."""

    @property
    def size(self) -> int: ...

    @property
    def ranks(self) -> Collectives:
        """Connected from `ready` on."""

    def ready(self) -> bool:
        """Whether all are there; does not wait."""

    def new_key(self) -> int: ...

    def tell(self, command: Command) -> None:
        """To every other rank."""

    def hear(self) -> list[Command]:
        """One answer of every other rank."""


class GroupLearner:
    """See the module docstring. device: rank 0's."""

    def __init__(
        self,
        group: TrainerGroup,
        config: SAEConfig,
        d_in: int,
        d_out: int | None = None,
        device: TrainingDevice = CPU,
    ) -> None:
        features, least = config.features(d_in), 1 if group.ranks.has_all_latents else group.size
        if features < least:
            raise ValueError(
                f"d_sae {features} is less than the {least} ranks that share the features; raise d_sae or "
                "lower group.size"
            )
        self.config, self._group, self._device = config, group, device
        self._d_in, self._d_out = d_in, d_out
        self._whole: Learner | None = Learner(config, d_in, d_out)
        self._mine: Learner | None = None
        self._key = group.new_key()
        self._gathered: StateDict | None = None
        """The state of all ranks, until it changes."""
        self._lives = self._whole.lives
        """Of all features, as they were when they were asked for last."""

    @property
    def ready(self) -> bool:
        return self._group.ready()

    @property
    def _now(self) -> Learner:
        found = self._mine or self._whole
        assert found is not None
        return found

    @property
    def _is_whole(self) -> bool:
        """This rank has every feature."""
        return self._mine is None or self._group.ranks.has_all_latents

    # What every rank knows alike.

    @property
    def steps(self) -> int:
        return self._now.steps

    @property
    def steps_skipped(self) -> int:
        return self._now.steps_skipped

    @property
    def rollbacks(self) -> int:
        return self._now.rollbacks

    @property
    def features_resampled(self) -> int:
        return self._now.features_resampled

    @property
    def dead_fraction(self) -> float:
        return self._now.dead_fraction

    @property
    def d_sae(self) -> int:
        return self._now.d_sae

    @property
    def lives(self) -> FeatureLives:
        """Where features are spread, as `whole_lives` found them last (at a checkpoint)."""
        return self._now.lives if self._is_whole else self._lives

    @property
    def controller(self) -> SparsityController:
        return self._now.controller

    @property
    def sparsity_coefficient(self) -> float:
        return self._now.sparsity_coefficient

    @property
    def learning_rate(self) -> float:
        return self._now.learning_rate

    @property
    def scaling(self) -> RowScaling:
        return self._now.scaling

    # What they do together.

    def start(self, rows_ND: torch.Tensor, scaling: RowScaling) -> None:
        """As `Learner.start`."""
        assert self._whole is not None
        self._whole.start(rows_ND, scaling)

    def follow(self, scaling: RowScaling) -> float:
        """As `Learner.follow`."""
        ratio = self._now.follow(scaling)
        if self._mine is not None and ratio != 1.0:
            self._tell("rescale", ratio=ratio)
        return ratio

    def mark_good(self) -> None:
        """As `Learner.mark_good`."""
        if self._mine is not None:
            gathered = self._gathered
            self._tell("mark_good")
            self._mine.mark_good()
            self._gathered = gathered

    @torch.no_grad()
    def step(
        self, rows_BD: torch.Tensor, weight_B: torch.Tensor, host_step: int = 0
    ) -> StepResult | None:
        """As `Learner.step`."""
        mine, ranks = self._spread(), self._group.ranks
        scaled_BD = mine.scaled(rows_BD)
        uniform = bool((weight_B == weight_B[0]).all())
        rows = len(scaled_BD)
        total = float(weight_B.sum()) if not uniform else float(rows)
        self._tell("step", rows=rows, weighted=not uniform, weight=total, host_step=host_step)
        tensors = [scaled_BD] if uniform else [scaled_BD, weight_B]
        if ranks.has_all_rows:
            for tensor in tensors:
                ranks.broadcast_(tensor)
            return mine.step_on(scaled_BD, None if uniform else weight_B, host_step=host_step)
        for rank in range(1, ranks.size):
            for tensor in tensors:
                ranks.send(tensor[ranks.rows_of(rows, rank)], rank)
        own = ranks.rows_of(rows)
        batch = WholeBatch(own.start, rows, total)
        own_weight_B = None if uniform else weight_B[own]
        return mine.step_on(scaled_BD[own], own_weight_B, batch, host_step=host_step)

    def measure(
        self, rows_BD: torch.Tensor, weight_B: torch.Tensor, outlier_norm: float
    ) -> SAEMetrics:
        """As `Learner.measure`."""
        mine = self._spread()
        if self._group.ranks.has_all_latents:
            return mine.measure(rows_BD, weight_B, outlier_norm)
        return measure(
            mine.sae,
            mine.scaling,
            rows_BD,
            weight_B,
            self.dead_fraction,
            outlier_norm,
            self._look,
        )

    def _look(
        self, input_BD: torch.Tensor, weight_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mine, ranks, gathered = self._spread(), self._group.ranks, self._gathered
        input_BD = input_BD.contiguous()
        self._tell("look", rows=len(input_BD))
        self._gathered = gathered
        for tensor in (input_BD, weight_B):
            ranks.broadcast_(tensor)
        acts_BF, made_BD = mine.made(input_BD)
        return made_BD, ranks.every_latent(firing_rates(acts_BF, weight_B))

    # States.

    @property
    def decoder(self) -> torch.Tensor:
        """W_dec_FD of the whole SAE, where it lies."""
        if self._is_whole:
            return self._now.decoder
        found = self._gather()["sae.W_dec"]
        assert isinstance(found, torch.Tensor)
        return found

    def whole_sae(self) -> SparseAutoencoder:
        """All of the SAE, on the CPU."""
        if self._is_whole:
            return self._now.whole_sae()
        return whole_of(self._now.sae, self.config, self._gather())

    def whole_lives(self) -> FeatureLives:
        """Of all features, as they are now."""
        if self._is_whole:
            return self._now.lives
        lives = FeatureLives(self.decoder)
        lives.load_state_dict(pick(self._gather(), "lives"), self.decoder)
        self._lives = lives
        return lives

    def state_dict(self) -> StateDict:
        """As one process would have it, on the CPU where it was gathered."""
        if self._is_whole:
            return self._now.state_dict()
        return dict(self._gather())

    def load_state_dict(self, state: StateDict) -> None:
        """Raises: as `Learner.load_state_dict`."""
        if self._whole is None:
            self._whole, self._mine = Learner(self.config, self._d_in, self._d_out), None
        self._whole.load_state_dict(state)
        self._lives = self._whole.lives

    def _spread(self) -> Learner:
        """This rank's part; every rank has its own from now on.

        Raises:
            DeviceMemoryError: a rank has no room for its part.
        """
        if self._mine is not None:
            return self._mine
        assert self._whole is not None
        ranks, state = self._group.ranks, self._whole.state_dict()
        config = self.config.model_dump(mode="json")
        self._tell("new", config=config, d_in=self._d_in, d_out=self._d_out)
        weakref.finalize(self, _forget, self._group, self._key)
        shortages = [answer["shortage"] for answer in self._group.hear() if "shortage" in answer]
        if shortages:
            raise DeviceMemoryError(shortages[0])
        mine = Learner(self.config, self._d_in, self._d_out, self._device, ranks)
        tensors = {n: value for n, value in state.items() if isinstance(value, torch.Tensor)}
        numbers = {n: value for n, value in state.items() if n not in tensors}
        self._tell("load", numbers=numbers, tensors=list(tensors))
        own: StateDict = dict(numbers)
        for name, tensor in tensors.items():
            for rank in range(1, ranks.size):
                ranks.send(part_of(name, tensor, ranks.features_of(mine.d_sae, rank)), rank)
            own[name] = part_of(name, tensor, ranks.features_of(mine.d_sae))
        mine.load_state_dict(own)
        self._mine, self._whole = mine, None
        return mine

    def _gather(self) -> StateDict:
        if self._gathered is not None:
            return self._gathered
        mine = self._mine
        assert mine is not None
        ranks = self._group.ranks
        self._tell("gather")
        found: StateDict = {}
        for name, value in mine.state_dict().items():
            if not isinstance(value, torch.Tensor):
                found[name] = value
                continue
            axis = feature_axis(name)
            parts = [value.detach().cpu()]
            for rank in range(1, ranks.size) if axis is not None else ():
                shape = list(value.shape)
                features = ranks.features_of(mine.d_sae, rank)
                shape[axis or 0] = features.stop - features.start
                part = torch.empty(shape, dtype=value.dtype)
                ranks.receive(part, rank)
                parts.append(part)
            found[name] = joined(name, parts) if axis is not None else parts[0].clone()
        self._gathered = found
        return found

    def _tell(self, do: str, **more: Any) -> None:
        self._gathered = None
        self._group.tell({"do": do, "key": self._key, **more})


def _forget(group: TrainerGroup, key: int) -> None:
    """The learner is gone: its ranks need not keep theirs. What fails here fails at the next command."""
    try:
        group.tell({"do": "forget", "key": key})
    except Exception:  # noqa: BLE001 - also called while the interpreter ends
        return
