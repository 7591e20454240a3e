"""The online trainer of one hook point: rows in, a better SAE and its measurements out.

`ingest` only copies; `train` spends whatever the data budget allows, within a time limit; both are
called by one thread. Equal calls give bit-equal weights on one machine, device and thread count, also
across `save` and `load`. torch's global RNG is never touched. Checkpoints do not know of the device.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import (
    MOST_COUNTED,
    CheckpointError,
    StateDict,
    check_like,
    number_of,
    pick,
    put,
)
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore, check_seal
from asys_bench.sae.checkpoint.lives import Lives, lives_now, write_lives
from asys_bench.sae.checkpoint.native_format import save_sae
from asys_bench.sae.checkpoint.trainer_state import TrainerState, read_state, write_state
from asys_bench.sae.config import OF_SEVERAL_HOOKS, SAEConfig
from asys_bench.sae.footprint import Footprint, footprint
from asys_bench.sae.group.group_learner import TrainerGroup
from asys_bench.sae.metrics import SAEMetrics
from asys_bench.sae.ranks import GroupError
from asys_bench.sae.training.device import CPU, DeviceMemoryError, TrainingDevice
from asys_bench.sae.training.held_out import PacketKey
from asys_bench.sae.training.intake import RowBlock, split_usable
from asys_bench.sae.training.pairing import JointRows
from asys_bench.sae.training.running_metrics import RunningMetrics, feature_survival
from asys_bench.sae.training.trainer_parts import TrainerParts

BLOCK_ROWS = 4096
"""Rows that wait at most before they are checked and shuffled in."""
SMOOTHING = 0.02
"""Weight of a new step in the running loss and L0."""
_COUNTERS = ("rows_ingested", "rows_held_out", "rows_refused", "rows_trained", "rows_over_budget",
             "rows_outlying")  # fmt: skip
_SMOOTHED = ("loss", "fvu", "l0", "input_drift")
log = logging.getLogger(__name__)


class SAETrainer:
    """Trains one SAE. `model_name` and `hook_name` go into the checkpoint's metadata.

    hook_names: of an SAE of several hooks, all of them in order; the first is `hook_name`.
    text: token ids travel beside the rows (see `outliers`).
    device: where it trains; what does not fit there raises DeviceMemoryError from every method that
    needs it. group: ranks that take its steps together; this process is rank 0. When one fails, GroupError
    comes from every method that needs them.
    """

    def __init__(
        self,
        config: SAEConfig,
        model_name: str = "",
        hook_name: str = "",
        *,
        hook_names: Sequence[str] = (),
        text: bool = False,
        device: TrainingDevice = CPU,
        group: TrainerGroup | None = None,
    ) -> None:
        self.config, self._text, self.device, self._group = config, text, device, group
        self.model_name, self.hook_name = model_name, hook_name
        self.hook_names = tuple(hook_names)
        self._hook: TrainerParts | None = None
        self._budget_rows = 0.0
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._smoothed: dict[str, float] = {}
        self._saved_W_dec: torch.Tensor | None = None
        self._survival = math.nan
        self._unfed: Path | None = None
        self._untried: Path | None = None
        """The checkpoint that it goes on from, until the first rows have come, and until a step from it
        was good."""

    @property
    def d_in(self) -> int | None:
        """Width of the rows that are encoded; None before the first."""
        return self._hook.d_in if self._hook else None

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._hook.learner.steps if self._hook else 0

    @property
    def sae(self) -> SparseAutoencoder | None:
        """A copy of the SAE that takes raw rows; None before the first row."""
        hook = self._hook
        if hook is None:
            return None
        raw = hook.learner.whole_sae().folded(hook.learner.scaling)
        raw.outlier_norm = hook.outliers.limit
        return raw

    @property
    def lives(self) -> Lives | None:
        """What the features' lives are now; None before the first row."""
        hook = self._hook
        if hook is None:
            return None
        return lives_now(hook.learner.whole_lives(), hook.learner.decoder)

    def ingest(
        self,
        rows_ND: torch.Tensor,
        key: PacketKey,
        weight: float = 1.0,
        *,
        target_ND: torch.Tensor | None = None,
        hook_widths: tuple[int, ...] | None = None,
        host_step: int = 0,
        weights_version: int = 0,
        part_of: tuple[int, int] | None = None,
    ) -> None:
        """Take a copy of one packet's rows: most for training, and those that its key decides to be
        held out.

        rows_ND: any real dtype, [..., D] (or [D]); may be a view that dies after the call.
        key: (source, shard, seq) of the packet.
        weight: rows each row stands for (1 / sampling rate), finite and > 0.
        target_ND: for a transcoder (and only there) the other hook's rows, [..., D_out].
        hook_widths: for a crosscoder (and only there) the columns of each hook, whose rows lie side by
            side; they add up to D.
        host_step, weights_version: when the packet was captured.
        part_of: (index of the first of these rows, rows of the whole packet) when it comes in parts.

        Raises:
            ValueError: another D (or split into hooks) than before, D = 0, complex rows, a bad weight,
                or a target or split that is missing, not wanted, or does not fit the rows.
        """
        if not 0.0 < weight < math.inf:
            raise ValueError(f"weight {weight} is not a positive finite number")
        rows_ND = _flat(rows_ND)
        width, width_out = rows_ND.shape[1], None
        self._check_hooks(target_ND is not None, hook_widths, width)
        if target_ND is not None:
            target_ND = _flat(target_ND)
            width_out = target_ND.shape[1]
            if len(target_ND) != len(rows_ND):
                raise ValueError(
                    f"{len(rows_ND)} input rows cannot be paired with {len(target_ND)} output rows"
                )
        if self._unfed is not None:
            self._compare_widths(self._unfed, width, width_out, hook_widths)
        if self._hook is None:
            self.config = self.config.model_copy(update={"hook_widths": hook_widths})
            self._hook = self._parts(self.config, width, width_out)
        hook = self._hook
        known = hook.d_in, hook.d_out, self.config.hook_widths
        if (width, width_out, hook_widths) != known:
            now, before = _widths(width, width_out, hook_widths), _widths(*known)
            raise ValueError(f"rows are {now} wide; earlier ones of this hook were {before}")
        if target_ND is not None:
            owned_ND = torch.cat([rows_ND.float(), target_ND.float()], 1)
        else:
            owned_ND = rows_ND.to("cpu", torch.float32, copy=True)
        self._counts["rows_ingested"] += len(owned_ND)
        first, whole = part_of or (0, len(owned_ND))
        held_out, trained = hook.held_out.share(
            key, whole, self.config.held_out_fraction, slice(first, first + len(owned_ND))
        )
        for part in held_out:
            self._counts["rows_held_out"] += part.stop - part.start
            block, refused = split_usable(RowBlock.uniform(owned_ND[part]))
            self._counts["rows_refused"] += refused
            hook.held_out.add(block.rows_ND, weight)
        for part in trained:
            hook.intake.put(owned_ND[part], weight, host_step, weights_version)
        if hook.intake.waiting >= BLOCK_ROWS:
            self._absorb(hook)

    def ingest_joint(
        self, joint: JointRows, *, host_step: int = 0, part_of: tuple[int, int] | None = None
    ) -> None:
        """`ingest` of the rows of several hooks at one moment: a transcoder's [input, output], or a
        crosscoder's, in the order of its hooks.

        Raises:
            ValueError: as `ingest`.
        """
        more: dict[str, Any] = {
            "host_step": host_step, "weights_version": joint.weights_version, "part_of": part_of
        }  # fmt: skip
        if self.config.architecture == "skip_transcoder":
            rows, target = (hook.rows for hook in joint.hooks)
            self.ingest(rows, joint.key, joint.weight, target_ND=target, **more)
        else:
            rows, widths = joint.side_by_side(), joint.widths
            self.ingest(rows, joint.key, joint.weight, hook_widths=widths, **more)

    def _parts(self, config: SAEConfig, d_in: int, d_out: int | None) -> TrainerParts:
        """Raises DeviceMemoryError: the device has no room for them."""
        size = self._size(config, d_in, d_out)
        self.device.require(self.hook_name, size)
        with self.device.holding(self.hook_name, size):
            return TrainerParts(
                config, d_in, d_out, text=self._text, device=self.device, group=self._group
            )

    def _holding(self, hook: TrainerParts) -> AbstractContextManager[None]:
        return self.device.holding(self.hook_name, self._size(self.config, hook.d_in, hook.d_out))

    def _size(self, config: SAEConfig, d_in: int, d_out: int | None) -> Footprint:
        if self._group is None:
            return footprint(config, d_in, d_out)
        own = self._group.ranks.features_of(config.features(d_in))
        return footprint(config, d_in, d_out, own.stop - own.start)

    def _check_hooks(
        self, has_target: bool, hook_widths: tuple[int, ...] | None, width: int
    ) -> None:
        """Raises ValueError: rows of other hooks than this architecture takes."""
        name = self.config.architecture
        has = "skip_transcoder" if has_target else "crosscoder" if hook_widths is not None else ""
        if (name if name in OF_SEVERAL_HOOKS else "") != has:
            wants = {
                "skip_transcoder": "needs the rows of a second hook",
                "crosscoder": "needs the rows of several hooks side by side (hook_widths)",
            }
            raise ValueError(
                f"architecture {name!r} " + wants.get(name, "takes one hook's rows, and no others")
            )
        if hook_widths is not None and (
            min(hook_widths, default=0) < 1 or sum(hook_widths) != width
        ):
            raise ValueError(
                f"hook_widths {list(hook_widths)} do not add up to rows of width {width}"
            )

    def _compare_widths(
        self, checkpoint: Path, d_in: int, d_out: int | None, hook_widths: tuple[int, ...] | None
    ) -> None:
        """Let go of a checkpoint that is of other rows than the first ones that come."""
        hook, self._unfed = self._hook, None
        if hook is None:
            return
        known = hook.d_in, hook.d_out, self.config.hook_widths
        if (d_in, d_out, hook_widths) != known:
            now, before = _widths(d_in, d_out, hook_widths), _widths(*known)
            self._begin_anew(checkpoint, f"its rows were {before} wide, and these are {now}")

    def _begin_anew(self, checkpoint: Path, reason: str) -> None:
        log.error(
            "%s: no training goes on from %s, it starts anew: %s",
            self.hook_name,
            checkpoint,
            reason,
        )
        self._hook, self._budget_rows, self._smoothed = None, 0.0, {}
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._saved_W_dec, self._survival = None, math.nan
        self._unfed = self._untried = None

    def _absorb(self, hook: TrainerParts) -> None:
        """Move waiting rows into the reservoir and grant their budget."""
        if hook.intake.waiting == 0:
            return
        block, refused = split_usable(hook.intake.take())
        self._counts["rows_refused"] += refused
        block, norm_N = self._without_outliers(hook, block)
        hook.normalizer.update(block.rows_ND, block.weight_N, norm_N)
        hook.buffer.add(block)
        self._budget_rows += self.config.passes * len(block)
        most = max(self.config.passes * self.config.buffer_rows, 2.0 * self.config.batch_rows)
        if self._budget_rows > most:
            self._counts["rows_over_budget"] += int(self._budget_rows - most)
            self._budget_rows = most
        if hook.learner.steps:
            hook.learner.follow(hook.normalizer.scaling)

    def _without_outliers(
        self, hook: TrainerParts, block: RowBlock
    ) -> tuple[RowBlock, torch.Tensor]:
        """The rows to train on, with their norms. Where a limit begins, the reservoir is rid of what
        it took in before, and the input scale is that of what stays."""
        gate = hook.outliers
        norm_N, before = gate.norms(block.rows_ND), gate.limit
        gate.observe(block.rows_ND, norm_N)
        if math.isinf(gate.limit):
            return block, norm_N
        if math.isinf(before) and len(hook.buffer):
            outlying = hook.buffer.keep_only(gate.norms(hook.buffer.rows) <= gate.limit)
            self._counts["rows_outlying"] += outlying
            if outlying:
                hook.normalizer = hook.new_normalizer()
                hook.normalizer.update(hook.buffer.rows, hook.buffer.weights)
        usual_N = norm_N <= gate.limit
        usual = int(usual_N.sum())
        if usual == len(block):
            return block, norm_N
        self._counts["rows_outlying"] += len(block) - usual
        return block[usual_N], norm_N[usual_N]

    def train(
        self,
        budget_s: float | None = None,
        max_steps: int | None = None,
        *,
        wait_for_fill: bool = True,
        between_steps: Callable[[], None] | None = None,
    ) -> int:
        """Take the optimizer steps that data budget, time and `max_steps` allow; returns how many.

        Skipped (non-finite) steps use up budget too but are not counted in the result.

        budget_s: seconds after which no further step begins. None: no limit.
        wait_for_fill: hold the first step back until `min_buffer_fill_ratio` is reached; pass
            False at the end of a short stream.
        between_steps: called before every step (a heartbeat).
        """
        hook = self._hook
        if hook is None:
            return 0
        try:
            with self._holding(hook):
                return self._train(hook, budget_s, max_steps, wait_for_fill, between_steps)
        except (DeviceMemoryError, GroupError):
            raise
        except Exception as error:
            if self._untried is None:
                raise
            self._begin_anew(self._untried, f"{type(error).__name__}: {error}")
            return 0

    def _train(
        self,
        hook: TrainerParts,
        budget_s: float | None,
        max_steps: int | None,
        wait_for_fill: bool,
        between_steps: Callable[[], None] | None,
    ) -> int:
        self._absorb(hook)
        rows, wanted = self.config.batch_rows, self.config.min_buffer_fill_ratio
        needed = rows
        if wait_for_fill and hook.learner.steps == 0:
            needed = max(rows, math.ceil(wanted * self.config.buffer_rows))
        if len(hook.buffer) < needed or hook.buffer.drawable < rows or not hook.learner.ready:
            return 0
        deadline = math.inf if budget_s is None else time.monotonic() + budget_s
        limit = math.inf if max_steps is None else max_steps
        done = 0
        while done < limit and self._budget_rows >= rows and time.monotonic() < deadline:
            if between_steps is not None:
                between_steps()
            self._budget_rows -= rows
            rollbacks = hook.learner.rollbacks
            if self._step(hook, more=self._budget_rows >= rows and done + 1 < limit):
                done += 1
                self._untried = None
            elif self._untried is not None and hook.learner.rollbacks > rollbacks:
                self._begin_anew(self._untried, "no step from there is finite")
                break
        return done

    def _step(self, hook: TrainerParts, *, more: bool) -> bool:
        """more: another step probably follows, before any new row."""
        learner = hook.learner
        if learner.steps == 0:
            learner.start(hook.buffer.rows, hook.normalizer.scaling)
        batch = hook.feed.take()
        if more:
            hook.feed.ahead()
        hook.mixing.observe(batch.step_N, batch.version_N, hook.buffer.newest_version)
        result = learner.step(batch.rows_ND, batch.weight_N, int(batch.step_N.max()))
        if result is None:
            if learner.steps_skipped in (1, 10, 100, 1000):
                log.warning("%s: %d steps skipped", self.hook_name, learner.steps_skipped)
            return False
        self._counts["rows_trained"] += len(batch)
        variance = hook.normalizer.variance * learner.scaling.scale**2 / (hook.d_out or hook.d_in)
        self._smooth("loss", result.loss)
        self._smooth("fvu", result.error / variance if variance > 0 else 0.0)
        self._smooth("l0", result.active / len(batch))
        if hook.window.add(len(batch), result.error, variance):
            self._smoothed["input_drift"] = hook.normalizer.drift
        return True

    def _smooth(self, name: str, value: float) -> None:
        if math.isfinite(value):
            before = self._smoothed.get(name, value)
            self._smoothed[name] = before + SMOOTHING * (value - before)

    @property
    def metrics(self) -> RunningMetrics:
        """The running numbers; costs microseconds."""
        running = RunningMetrics(**self._counts, **self._smoothed)  # type: ignore[arg-type]
        running.feature_survival = self._survival
        if self._hook is not None:
            hook, learner = self._hook, self._hook.learner
            running.steps, running.steps_skipped = learner.steps, learner.steps_skipped
            running.rollbacks = learner.rollbacks
            running.outlier_norm = hook.outliers.limit
            running.buffer_fill_ratio = len(hook.buffer) / self.config.buffer_rows
            running.dead_fraction = learner.dead_fraction
            running.features_resampled = learner.features_resampled
            running.lives, running.turned = learner.lives.begun, learner.lives.turned
            young = self.config.dead_after(learner.d_sae)
            running.new_lives = learner.lives.share_younger_than(young)
            running.learning_rate = learner.learning_rate
            running.input_scale = learner.scaling.scale
            running.windows, running.window_fvu = hook.window.count, hook.window.last
            running.mixing_autocorrelation = hook.mixing.autocorrelation
            running.row_age_versions = hook.mixing.age_versions
            if learner.controller.steers:
                running.sparsity_coefficient = learner.sparsity_coefficient
        return running

    def evaluate(self) -> SAEMetrics | None:
        """Measure on the held-out rows; None before the first of them or before the first step."""
        hook = self._hook
        if hook is None or len(hook.held_out) == 0 or hook.learner.steps == 0:
            return None
        learner = hook.learner
        if not learner.ready:
            return None
        rows_BD, weight_B = hook.held_out.rows, hook.held_out.weights
        with self._holding(hook):
            return learner.measure(rows_BD, weight_B, hook.outliers.limit)

    def save(
        self,
        folder: Path,
        metadata: dict[str, Any] | None = None,
        *,
        sync: bool = True,
        below: Path | None = None,
    ) -> Path | None:
        """Write `folder/step_.../` (SAELens files and trainer state) and point `latest` at it.

        metadata: more JSON values for cfg.json.
        sync: wait until it is on the device. below: as in `CheckpointStore`.
        Returns the new folder; None before any row came.

        Raises:
            CheckpointError: not written (disk, or a non-finite value); older ones stay.
        """
        hook = self._hook
        if hook is None:
            return None
        sae, W_dec_FD = hook.learner.whole_sae(), hook.learner.decoder
        survival = math.nan
        if self._saved_W_dec is not None and bool(torch.isfinite(W_dec_FD).all()):
            survival = feature_survival(self._saved_W_dec, W_dec_FD)
        about = {
            "model_name": self.model_name,
            "hook_name": self.hook_name,
            **({"hook_names": list(self.hook_names)} if self.hook_names else {}),
            "training_steps": self.steps,
            "training_rows": self._counts["rows_trained"],
            **({} if math.isnan(survival) else {"feature_survival": survival}),
            **(metadata or {}),
        }

        def fill(target: Path) -> None:
            save_sae(target, sae, hook.learner.scaling, about, hook.outliers.limit)
            # Before the state, which then says as well which features have turned.
            write_lives(target, lives_now(hook.learner.whole_lives(), W_dec_FD))
            state = TrainerState(self.config, hook.d_in, self._state(), hook.d_out, self.hook_name)
            write_state(target, state)

        store = CheckpointStore(
            folder,
            self.config.checkpoint_keep,
            keep_every=self.config.checkpoint_keep_every,
            sync=sync,
            below=below,
        )
        written = store.write(self.steps, fill)
        self._saved_W_dec, self._survival = W_dec_FD.clone(), survival
        hook.learner.mark_good()
        return written

    def _state(self) -> StateDict:
        assert self._hook is not None
        state: StateDict = {"budget_rows": self._budget_rows}
        put(state, "counts", {name: min(n, MOST_COUNTED) for name, n in self._counts.items()})
        put(state, "smoothed", dict(self._smoothed))
        for name, part in self._hook.stateful(self.config.checkpoint_buffer).items():
            put(state, name, part.state_dict())
        return {n: v.cpu() if isinstance(v, torch.Tensor) else v for n, v in state.items()}

    def load(self, folder: Path, *, below: Path | None = None) -> Path | None:
        """Go on from the newest readable checkpoint in `folder`; returns it, None if there is none.

        Damaged ones, and those of another hook, are passed over with a warning. below: as in
        `CheckpointStore`.

        Raises:
            CheckpointError: there are checkpoints but none can be used (the newest one's reason), or the
                folder cannot be read.
        """
        first: CheckpointError | None = None
        for path in CheckpointStore(folder, below=below).candidates():
            try:
                self.restore(path)
            except CheckpointError as error:
                log.warning("checkpoint passed over: %s", error)
                first = first or error
            else:
                return path
        if first is not None:
            raise first
        return None

    def restore(self, checkpoint: Path) -> None:
        """Go on from this one checkpoint folder.

        Raises:
            CheckpointError: it is damaged, or does not fit this configuration; nothing has changed.
        """
        check_seal(checkpoint)
        self._restore(checkpoint, read_state(checkpoint))

    def _restore(self, path: Path, saved: TrainerState) -> None:
        theirs = saved.config
        ours = self.config.model_copy(update={"hook_widths": theirs.hook_widths})
        same = ("architecture", "k") if ours.architecture == "topk" else ("architecture",)
        for field in same:
            if getattr(ours, field) != getattr(theirs, field):
                reason = (
                    f"{field} is {getattr(theirs, field)!r}, configured {getattr(ours, field)!r}"
                )
                raise CheckpointError(path, reason)
        if saved.hook_name and self.hook_name and saved.hook_name != self.hook_name:
            raise CheckpointError(path, f"is of hook {saved.hook_name!r}, not {self.hook_name!r}")
        try:
            hook = self._parts(ours, saved.d_in, saved.d_out)
            with_buffer = "buffer.rows" in saved.state
            with self._holding(hook):
                for name, part in hook.stateful(with_buffer).items():
                    state = pick(saved.state, name)
                    check_like(state, part.state_dict())
                    part.load_state_dict(state)
            own: StateDict = {"budget_rows": 0.0, **{f"counts.{name}": 0 for name in _COUNTERS}}
            check_like(saved.state, own)
            budget_rows = number_of(saved.state, "budget_rows")
            counts = {name: int(number_of(saved.state, f"counts.{name}"))
                      for name in _COUNTERS
                      if name != "rows_outlying" or f"counts.{name}" in saved.state}  # fmt: skip
        except DeviceMemoryError:
            raise
        except Exception as error:  # whatever a state does to a part, another one is tried
            reason = f"does not fit this configuration: {type(error).__name__}: {error}"
            raise CheckpointError(path, reason) from error
        self.config = ours
        self._hook, self._budget_rows, self._counts = (
            hook,
            budget_rows,
            dict.fromkeys(_COUNTERS, 0) | counts,
        )
        smoothed = pick(saved.state, "smoothed")
        self._smoothed = {n: number_of(smoothed, n) for n in _SMOOTHED if n in smoothed}
        self._saved_W_dec = hook.learner.decoder.clone()
        self._unfed = self._untried = path


def _flat(rows: torch.Tensor) -> torch.Tensor:
    """As [N, D], detached, not copied.

    Raises:
        ValueError: these are no rows of real numbers.
    """
    if rows.is_complex() or rows.ndim == 0 or rows.shape[-1] == 0:
        raise ValueError(f"cannot train on {rows.dtype} rows of shape {tuple(rows.shape)}")
    return rows.detach().reshape(-1, rows.shape[-1])


def _widths(d_in: int, d_out: int | None, hook_widths: tuple[int, ...] | None) -> str:
    if hook_widths is not None:
        return " + ".join(str(width) for width in hook_widths)
    return f"{d_in}" if d_out is None else f"{d_in} -> {d_out}"
