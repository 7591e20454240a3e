"""What a trainer consists of once the width of its rows is known."""

from __future__ import annotations

from typing import Protocol

from asys_bench.sae.checkpoint.checkpoint_files import StateDict
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.group.group_learner import GroupLearner, TrainerGroup
from asys_bench.sae.training.buffer import ShuffleBuffer
from asys_bench.sae.training.device import CPU, TrainingDevice
from asys_bench.sae.training.feed import feed_of
from asys_bench.sae.training.held_out import HeldOut
from asys_bench.sae.training.intake import Intake
from asys_bench.sae.training.learner import Learner
from asys_bench.sae.training.normalizer import JointNormalizer, Normalizer, PairNormalizer
from asys_bench.sae.training.outliers import OutlierGate
from asys_bench.sae.training.running_metrics import FVUWindow, MixingMeter


class Stateful(Protocol):
    """A part that a checkpoint contains."""

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class TrainerParts:
    """Intake -> outlier gate -> normaliser, reservoir -> learner; held-out rows and meters beside.

    d_out: width of a transcoder's target, whose rows are [x | y]; None for autoencoders.
    text: token ids travel beside the rows. device: where the learner is; rows stay in the machine's
    memory until the feed brings them there. group: ranks that take the steps together, this one rank 0.
    """

    def __init__(
        self,
        config: SAEConfig,
        d_in: int,
        d_out: int | None = None,
        *,
        text: bool = False,
        device: TrainingDevice = CPU,
        group: TrainerGroup | None = None,
    ) -> None:
        self.d_in, self.d_out = d_in, d_out
        width = d_in + (d_out or 0)
        self.learner: Learner | GroupLearner = (
            Learner(config, d_in, d_out, device)
            if group is None
            else GroupLearner(group, config, d_in, d_out, device)
        )
        self.intake = Intake(width)
        self.outliers = OutlierGate(d_in, config.outliers, config.outlier_ratio, text=text)
        self._config = config
        self.normalizer = self.new_normalizer()
        self.buffer = ShuffleBuffer(
            config.buffer_rows, width, config.seed ^ 0xB0F, config.max_row_age_versions
        )
        self.feed = feed_of(device, self.buffer, config.batch_rows, width)
        self.held_out = HeldOut(config.held_out_rows, width)
        self.window = FVUWindow(config.window_rows)
        self.mixing = MixingMeter()

    def new_normalizer(self) -> Normalizer | PairNormalizer | JointNormalizer:
        """One that has seen no rows."""
        mode, window = self._config.normalize, self._config.normalizer_window_rows
        if self._config.hook_widths is not None:
            return JointNormalizer(self._config.hook_widths, mode, window)
        if self.d_out is None:
            return Normalizer(self.d_in, mode, window)
        return PairNormalizer(self.d_in, self.d_out, mode, window)

    def stateful(self, with_buffer: bool) -> dict[str, Stateful]:
        """The parts by their name in a checkpoint."""
        parts: dict[str, Stateful] = {
            "learner": self.learner,
            "intake": self.intake,
            "outliers": self.outliers,
            "normalizer": self.normalizer,
            "held_out": self.held_out,
            "window": self.window,
            "mixing": self.mixing,
        }
        return parts | {"buffer": self.buffer} if with_buffer else parts
