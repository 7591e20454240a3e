"""What a rank other than 0 does: what rank 0 tells it, until nothing comes any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from asys_bench.sae.architectures.base import WholeBatch
from asys_bench.sae.checkpoint.checkpoint_files import StateDict
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.footprint import footprint
from asys_bench.sae.group.group_learner import Command
from asys_bench.sae.group.state import feature_axis
from asys_bench.sae.metrics import firing_rates
from asys_bench.sae.ranks import Collectives
from asys_bench.sae.training.device import DeviceMemoryError, TrainingDevice
from asys_bench.sae.training.learner import Learner


class ServingRank:
    """The learners of one rank, by their keys. answer: sends to rank 0."""

    def __init__(
        self, ranks: Collectives, device: TrainingDevice, answer: Callable[[Command], None]
    ) -> None:
        self._ranks, self._device, self._answer = ranks, device, answer
        self._learners: dict[int, Learner] = {}

    @torch.no_grad()
    def serve(self, commands: Iterator[Command]) -> None:
        """Do each command; whatever it raises ends the rank, and with it the group."""
        for command in commands:
            key, do = int(command["key"]), str(command["do"])
            if do == "new":
                self._new(key, command)
            elif do == "forget":
                self._learners.pop(key, None)
            else:
                self._on(self._learners[key], do, command)

    def _on(self, learner: Learner, do: str, command: Command) -> None:
        if do == "step":
            self._step(learner, command)
        elif do == "load":
            self._load(learner, command)
        elif do == "rescale":
            learner.sae.rescale_(float(command["ratio"]))
        elif do == "mark_good":
            learner.mark_good()
        elif do == "look":
            input_BD = self._rows(command["rows"], learner.sae.d_in)
            weight_B = self._rows(command["rows"])
            for tensor in (input_BD, weight_B):
                self._ranks.broadcast_(tensor)
            acts_BF, _ = learner.made(input_BD)
            self._ranks.every_latent(firing_rates(acts_BF, weight_B))
        elif do == "gather":
            for name, value in learner.state_dict().items():
                if isinstance(value, torch.Tensor) and feature_axis(name) is not None:
                    self._ranks.send(value.detach().contiguous(), 0)
        else:
            raise ValueError(f"rank 0 asks for {do!r}")

    def _new(self, key: int, command: Command) -> None:
        config = SAEConfig.model_validate(command["config"])
        d_in, d_out = command["d_in"], command["d_out"]
        config.apply_threads()
        try:
            own = self._ranks.features_of(config.features(d_in))
            part = footprint(config, d_in, d_out, own.stop - own.start)
            self._device.require(f"rank {self._ranks.rank}", part)
            with self._device.holding(f"rank {self._ranks.rank}", part):
                self._learners[key] = Learner(config, d_in, d_out, self._device, self._ranks)
        except DeviceMemoryError as error:
            self._answer({"shortage": str(error)})
            return
        self._answer({"ready": key})

    def _load(self, learner: Learner, command: Command) -> None:
        like, state = learner.state_dict(), StateDict(command["numbers"])
        for name in command["tensors"]:
            value = like[name]
            assert isinstance(value, torch.Tensor)
            tensor = torch.empty(value.shape, dtype=value.dtype)
            self._ranks.receive(tensor, 0)
            state[name] = tensor
        learner.load_state_dict(state)

    def _step(self, learner: Learner, command: Command) -> None:
        rows, weighted, ranks = int(command["rows"]), bool(command["weighted"]), self._ranks
        width = learner.sae.d_in if learner.d_out is None else learner.sae.d_in + learner.d_out
        own = ranks.rows_of(rows)
        scaled_BD = self._rows(own.stop - own.start, width)
        weight_B = torch.empty(len(scaled_BD)) if weighted else None
        for tensor in (scaled_BD, weight_B):
            if tensor is None:
                continue
            if ranks.has_all_rows:
                ranks.broadcast_(tensor)
            else:
                ranks.receive(tensor, 0)
        batch = None
        if not ranks.has_all_rows:
            batch = WholeBatch(own.start, rows, float(command["weight"]))
        learner.step_on(scaled_BD, weight_B, batch, host_step=int(command["host_step"]))

    def _rows(self, *shape: Any) -> torch.Tensor:
        return torch.empty(*shape, device=self._device.tensors)
