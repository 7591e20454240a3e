"""`SAETrainerWorker`: one worker process that trains the SAEs of its hook points.

It takes packets as they come, trains in short slices between two pulls (so that heartbeats go on
and the bus is emptied first), measures on held-out rows and writes checkpoints that SAELens
loads. A packet is decoded once for all SAEs of its hook. A new incarnation resumes each SAE from
its newest readable checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from asys_bench.contracts.bus import Delivery, Lease
from asys_bench.contracts.packet import ActivationPacket
from asys_bench.contracts.run_files import share_coin
from asys_bench.contracts.sink import BaseSink, PlannedSAE, SinkContext, SinkOptions, SinkPlugin
from asys_bench.contracts.torch_internals import DYNAMO
from asys_bench.sae import SAEConfig
from asys_bench.sae.group.processes import GroupProcesses
from asys_bench.sae.training.device import (
    CPU,
    DeviceMemoryError,
    DeviceUnavailableError,
    TrainingDevice,
    prepare_process,
)
from asys_bench.sae.training.pairing import HookRows, Moment, MomentMatcher
from asys_bench.sinks.sae.device_options import device_of
from asys_bench.sinks.sae.live_evaluation import LiveEvaluations
from asys_bench.sinks.sae.options import GroupOptions, SAETrainerOptions
from asys_bench.sinks.sae.start import StartFrom
from asys_bench.sinks.sae.training import Training
from asys_bench.system.allocator import return_freed_memory

__all__ = ["SAETrainerOptions", "SAETrainerWorker", "plugin"]

TRAIN_SLICE_S = 0.1
"""Longest training on one hook between two pulls; its variants share it."""


@dataclass
class _JointTraining:
    """An SAE of several hooks and the packets that wait to be its rows."""

    training: Training
    matcher: MomentMatcher


@dataclass
class _Route:
    """Who gets a hook's packets."""

    trainings: list[Training] = field(default_factory=list)
    joint: list[tuple[_JointTraining, int]] = field(default_factory=list)
    """With the hook's place among the SAE's."""

    def everyone(self) -> list[Training]:
        return [*self.trainings, *(joint.training for joint, _ in self.joint)]


class SAETrainerWorker(BaseSink):
    """See the module docstring."""

    def __init__(self, options: SAETrainerOptions) -> None:
        self._options = options
        self._routes: dict[int, _Route] = {}
        self._trainings: dict[str, Training] = {}
        self._joint: dict[str, _JointTraining] = {}
        self._evaluations: LiveEvaluations | None = None
        self._device: TrainingDevice = CPU
        self._no_device = ""
        self._group: GroupProcesses | None = None

    def open(self, context: SinkContext) -> None:
        self._context = context
        self._options.sae.apply_threads()
        prepare_process()
        try:
            self._device = device_of(self._options, context)
        except DeviceUnavailableError as error:
            self._no_device = str(error)
        if self._options.group is not None and not self._no_device:
            self._group = self._started(self._options.group)
        if self._options.evaluate is not None:
            self._evaluations = LiveEvaluations(self._options.evaluate, context, self._evaluated)

    def _started(self, options: GroupOptions) -> GroupProcesses:
        """The other ranks, which begin to start. What fails in one of them ends this process, and its
        restart is theirs."""
        context = self._context
        places = [dict(place) for place in context.ranks] or [{}] * (options.size - 1)
        for place in places:
            most = self._options.most_bytes(bool(place.get("shared")))
            if most is not None:
                place["most_bytes"] = most
        return GroupProcesses(
            options.split,
            places,
            device=self._device.tensors,
            threads=torch.get_num_threads(),
            heartbeat=self._beat_while_waiting,
        )

    def _beat_while_waiting(self) -> None:
        """A heartbeat from inside a step keeps what was promised for the step."""
        promises = [training.pace.promise_s for training in self._trainings.values()]
        self._context.slot.beat(max(promises, default=0.0))

    def consume(self, lease: Lease) -> None:
        draining = self._context.time_left_s() != float("inf")
        now_ns = time.monotonic_ns() + self._context.clock_shift_ns
        oldest_ns = now_ns - int(1e9 * self._options.max_lag_s)
        for packet in lease:
            if packet.is_constant:
                continue
            route = self._routes.get(packet.hook_id)
            if route is None:
                route = self._routes[packet.hook_id] = self._route(packet.hook_id)
            # A packet without a time is of no known age.
            if 0 < packet.timestamp_ns < oldest_ns and not draining:
                for training in route.everyone():
                    training.skipped_packets.add()
            else:
                self._take(packet, route)

    def _take(self, packet: ActivationPacket, route: _Route) -> None:
        rows = self._context.decode(packet)
        # A number that goes on over the attempts: the run that goes on holds out what one without an
        # end would have.
        key = (packet.source, packet.shard, packet.seq + self._context.first_packet)
        weight = 1.0 / packet.sampling_rate
        for training in route.trainings:
            if training.rejected:
                training.rejected_packets.add()
                continue
            training.expect(rows)
            try:
                training.trainer.ingest(
                    rows,
                    key,
                    weight,
                    host_step=packet.host_step,
                    weights_version=packet.weights_version,
                )
            except (ValueError, DeviceMemoryError) as error:
                training.rejected_packets.add()
                training.reject(error)
        waiting: HookRows | None = None
        for joint, index in route.joint:
            if joint.training.rejected:
                joint.training.rejected_packets.add()
                continue
            if waiting is None:  # longer than the lease holds the packet's memory
                kept, places = rows.detach().clone(), self._context.rows(packet)
                waiting = HookRows(kept, key, weight, packet.weights_version, places)
            moment = Moment(
                packet.source, packet.shard, packet.host_step, packet.weights_version,
                packet.microbatch, packet.call_index,
            )  # fmt: skip
            self._join(joint, index, moment, waiting)

    def _join(self, joint: _JointTraining, index: int, moment: Moment, own: HookRows) -> None:
        found = joint.matcher.offer(index, moment, own)
        training = joint.training
        if training.unpaired_packets is not None:
            training.unpaired_packets.set(joint.matcher.unmatched)
        if found is None:
            if joint.matcher.problem is not None:
                training.reject(joint.matcher.problem)
            return
        try:
            training.trainer.ingest_joint(found, host_step=moment.host_step)
        except (ValueError, DeviceMemoryError) as error:
            training.rejected_packets.add()
            training.reject(error)

    def _route(self, hook_id: int) -> _Route:
        """The SAEs of a hook, made (and resumed) when its first packet comes."""
        hook = self._context.name_of(hook_id)
        route = _Route()
        for label, config in self._options.saes_of(hook).items():
            start = self._options.start_of(label, hook)
            training = self._training(label, hook, config, start)
            if self._evaluations is not None:
                training.on_checkpoint = self._evaluations.checkpoint_written
            self._trainings[label] = training
            route.trainings.append(training)
        for sae in self._options.saes_of_several_hooks():
            for index, name in enumerate(sae.hooks):
                if name == hook:
                    route.joint.append((self._joint_training(sae), index))
        return route

    def _joint_training(self, sae: PlannedSAE) -> _JointTraining:
        """The one of this SAE, made when the first packet of its hooks comes."""
        joint = self._joint.get(sae.label)
        if joint is None:
            start = self._options.start_of(sae.label, sae.label)
            training = self._training(sae.label, sae.hook, sae.config, start, others=sae.others)
            shared = share_coin(self._context.run_dir, sae.hooks)
            joint = _JointTraining(training, MomentMatcher(sae.hooks, shared_coin=shared))
            self._trainings[sae.label] = training
            self._joint[sae.label] = joint
        return joint

    def _training(
        self,
        label: str,
        hook: str,
        config: SAEConfig,
        start: StartFrom | None,
        *,
        others: tuple[str, ...] = (),
    ) -> Training:
        training = Training(
            label,
            hook,
            config,
            self._context,
            start,
            others=others,
            device=self._device,
            group=self._group,
        )
        if self._no_device:
            training.reject(self._no_device)
        return training

    def idle(self) -> None:
        now = time.monotonic()
        slice_s, saved = TRAIN_SLICE_S / max(1, len(self._options.variants)), False
        for training in self._trainings.values():
            if training.rejected:
                continue
            trained = training.train(slice_s, between_steps=self._context.heartbeat)
            if trained:
                training.publish()
            if now - training.evaluated_at > self._options.evaluate_interval_s:
                training.evaluate()
            if now - training.saved_at > training.trainer.config.checkpoint_interval_s:
                training.save()
                saved = True
            self._context.heartbeat()
        if saved:  # what measuring and writing took lies between what is kept
            return_freed_memory()
        if self._evaluations is not None:
            self._evaluations.poll()

    def _evaluated(self, label: str, document: dict[str, Any]) -> None:
        self._trainings[label].evaluated_in_model(document)

    def close(self) -> None:
        """Spend what is left of the training budget, measure once more and write everything."""
        if self._evaluations is not None:
            self._evaluations.close()
        share = min(self._options.final_train_s, self._context.time_left_s() / 3)
        for training in self._trainings.values():
            training.finish(max(0.0, share / len(self._trainings)), len(self._trainings))
            self._context.heartbeat()
        if self._group is not None:
            self._group.close()


def _build(options: SinkOptions) -> BaseSink:
    assert isinstance(options, SAETrainerOptions)
    return SAETrainerWorker(options)


plugin = SinkPlugin(
    name="sae_trainer",
    summary="trains sparse autoencoders on every hook point, online",
    options=SAETrainerOptions,
    build=_build,
    default_delivery=Delivery.AT_MOST_ONCE,
    preload=("asys_bench.sae", DYNAMO),
    partition=True,
    trains_saes=True,
)
