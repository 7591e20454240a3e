"""ActivationHooker: copies activations and gradients out of a model onto the bus, and nothing else.

- It copies inside the hook and keeps no reference: hosts change tensors in place.
- Nothing of ours raises in the host. A hook that fails is switched off, counted and logged once.
- Outputs are returned untouched, no autograd graph is extended, and no random generator of the host
  is drawn from, so training is bit-identical with and without it.
- Compiled hosts keep one graph (`hooks.graph_op`); recomputation is ignored; any thread may call the model.
- `detach` removes every hook, wherever others have moved it; the model is as it was. Copies of the
  model have no hooks of ours (`hooks.own_hooks`), and a forked child captures nothing: the bus belongs to
  its parent.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence

import torch
from torch.utils.hooks import RemovableHandle

from asys_bench.capture.capture import Capture, not_direct
from asys_bench.capture.hook_stream import HookStream, Writer
from asys_bench.capture.hooks import graph_op
from asys_bench.capture.hooks.gradient_hooks import OutputGradientHook, ParameterGradientHook
from asys_bench.capture.hooks.input_gradient import InputGradientHook
from asys_bench.capture.hooks.module_hooks import (
    InputHook,
    OutputHook,
    TextInputHook,
    TextOutputHook,
)
from asys_bench.capture.hooks.own_hooks import ForwardStandIn, LiveHook, keep_out, remove_hooks
from asys_bench.capture.hooks.root_hook import ForwardCalls
from asys_bench.capture.hooks.weight_rounds import WeightRounds, WeightStream
from asys_bench.capture.labels import LabelSender
from asys_bench.capture.notices import Notices
from asys_bench.capture.offload import Offload
from asys_bench.capture.points.hookpoints import OF_PARAMETERS, HookPoint
from asys_bench.capture.points.out_of_reach import out_of_reach
from asys_bench.capture.sampling import Coin
from asys_bench.capture.silent_hooks import SilentHooks
from asys_bench.capture.tags.clock import StepClock
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.capture.tags.token_places import TokenPlaces
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.bus import BaseDataBus
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.preprocessor import Preprocessor
from asys_bench.contracts.stats import Slot
from asys_bench.contracts.torch_internals import drop_empty_accumulate_hooks, has_accumulate_hooks


class ActivationHooker:
    """Hooks on every hook point, pushing to shard 0 of `bus`.

    kernels, coins: one preprocessor and the key of its sampling coin (`contracts.coin`) per point, in
        order; hooks of one key keep the same calls.
    device: the path of models on a GPU; the defaults without.
    count_forwards: count calls of the model as microbatches; without, they are the host's to set.
    called: what the user calls, where that is a wrapper around the model.
    text: of a model that takes text.
    notices: told what a person should know.
    on_first: told of each stream when its first tensor comes, in the host's hook.
    label_horizon: host steps after which a label comes too late; None: nobody wants labels.
    """

    def __init__(
        self,
        bus: BaseDataBus,
        points: Sequence[HookPoint],
        kernels: Sequence[Preprocessor],
        slot: Slot,
        clock: StepClock,
        *,
        on_full: str = "sample",
        block_timeout_s: float = 1.0,
        coins: Sequence[int],
        device: DeviceConfig | None = None,
        count_forwards: bool = True,
        notices: Notices | None = None,
        on_first: Callable[[HookStream], None] | None = None,
        called: torch.nn.Module | None = None,
        text: TextInputs | None = None,
        label_horizon: int | None = None,
    ) -> None:
        self._slot, self._label_horizon = slot, label_horizon
        self.notices = notices or Notices()
        self._clock, self._text = clock, text
        self._writer = Writer(bus, on_full, block_timeout_s)
        self._offload = Offload(self._writer, slot, device or DeviceConfig(), notices=self.notices)
        coin_of = {key: Coin(key) for key in coins}
        self._streams = [
            HookStream(
                point,
                self._writer,
                slot,
                kernel,
                coin_of[key],
                self.notices,
                is_of_text=text is not None,
            )
            for point, kernel, key in zip(points, kernels, coins, strict=True)
        ]
        for stream in self._streams:
            stream.on_first = on_first
        model = self._model
        roots = [module for module in (called, model) if module is not None]
        self._calls = ForwardCalls(clock, roots, counts_forwards=count_forwards, text=text)
        self._undo: list[Callable[[], None]] = []
        self._silent: SilentHooks | None = None
        self._hooks: list[LiveHook] = []
        self._weights: list[WeightStream] = []
        _hookers.add(self)
        _watch_forks()

    @property
    def attached(self) -> bool:
        return bool(self._undo)

    def attach(self) -> None:
        """Register the hooks; a second call changes nothing.

        Raises:
            RuntimeError: a GPU's path to the bus cannot be started; nothing is attached.
        """
        if self._undo or not self._streams:
            return
        model = self._model
        parameters = model.parameters() if model is not None else ()
        devices = {p.device for p in parameters if p.device.type != "cpu"}
        self._offload.prepare(self._streams, sorted(devices, key=str))
        self._undo.append(self._offload.close)
        keep_out.begin()
        self._undo.append(keep_out.end)
        self._undo.append(self._remove_moved_hooks)
        try:
            self._undo.append(self._calls.detach)
            self._hooks += self._calls.attach_begin()
            for stream in self._streams:
                is_of_text = self._text is not None
                capture = Capture(
                    stream, self._writer, self._clock, self._offload, is_of_text=is_of_text
                )
                self._undo.append(capture.close)
                self._register(stream, capture)
            self._hooks += self._calls.attach_end()
            self._attach_labels()
            self._begin_rounds()
        except BaseException:
            self.detach()
            raise
        for why in out_of_reach([stream.point for stream in self._streams]):
            self.notices.say(why)
        watched = [
            stream
            for stream in self._streams
            if stream.point.kind not in OF_PARAMETERS and stream.point.model is not None
        ]
        if model is not None:
            self._silent = SilentHooks(model, watched, self._clock.host_step, self.notices)
            self._clock.call_at(self._silent.first_check, self._silent.check)

    def _begin_rounds(self) -> None:
        """Of each rule that captures parameters or updates; the first one begins now."""
        by_rule: dict[int, list[WeightStream]] = {}
        for one in self._weights:
            by_rule.setdefault(id(one.stream.point.config), []).append(one)
        clock = self._clock
        rounds = [
            WeightRounds(
                streams,
                (rule := streams[0].stream.point.config).every,
                int(rule.mib_per_step * (1 << 20)),
                self._writer.producer.max_payload_bytes,
                clock.host_step,
            )
            for streams in by_rule.values()
        ]

        def step(host_step: int) -> None:
            for one in rounds:
                one.step(host_step)

        def end() -> None:
            clock.rounds = None
            self._weights.clear()

        if rounds:
            self._undo.append(end)
            clock.rounds = step
            step(clock.host_step)

    def _attach_labels(self) -> None:
        if self._label_horizon is None:
            return
        labels = LabelSender(
            self._writer, self._slot, self._clock, self._offload, self._streams,
            self._label_horizon, is_of_text=self._text is not None,
            one_call_per_step=not self._calls.counts_forwards and self._text is None,
            notices=self.notices,
        )  # fmt: skip
        self._undo.append(labels.close)

    def raise_rates(self, raised: bool) -> None:
        """Sample at the highest rate that bus and row budgets allow, or as configured again; nothing where
        rates do not follow the bus."""
        if not self._writer.adapts:
            if raised:
                self.notices.say(
                    "an alarm asks for more samples: bus.on_full is not `sample`, so rates stay"
                )
            return
        for stream in self._streams:
            stream.raise_rate(raised)

    def detach(self) -> None:
        """Remove every hook. Idempotent."""
        while self._undo:
            self._undo.pop()()

    def review(self) -> None:
        """The host has ended: say which hooks have captured nothing, and why."""
        streams = [stream for stream in self._streams if stream.point.model is not None]
        if self._silent is not None and self.attached:
            self._silent.review(streams, self._clock.host_step)

    def silence(self) -> None:
        """Capture nothing from now on; takes no lock (a forked child: its owner is not there)."""
        for stream in self._streams:
            stream.off = True
        self._clock.forked()

    @property
    def _model(self) -> torch.nn.Module | None:
        return next((s.point.model for s in self._streams if s.point.model is not None), None)

    def _register(self, stream: HookStream, capture: Capture) -> None:
        module = stream.point.module
        if self._text is not None and self._text.is_point(stream.point):
            self._text.token_rows = capture
            self._undo.append(self._text.send_no_rows)
            return
        text = self._text
        places = TokenPlaces(stream, self._clock, text) if text is not None else None
        if places is not None and stream.point.kind in (Kind.ACTIVATION, Kind.INPUT):
            self._register_of_text(stream, capture, places)
            return
        match stream.point.kind:
            case Kind.ACTIVATION:
                hook_class = OutputHook
                if stream.path is None and capture.direct is not not_direct:
                    hook_class = self._writer.producer.hook_class(OutputHook)
                output = hook_class(stream, capture)
                if hook_class is not OutputHook and self._may_stand_in(module):
                    self._hooks.append(output)
                    self._undo.append(ForwardStandIn(module, output).attach())
                else:
                    self._keep(output, module.register_forward_hook(output))
                self._receive(stream.number, lambda x: capture.observe(x, stream.phase))
            case Kind.INPUT:
                hook = InputHook(stream, capture)
                self._keep(hook, module.register_forward_pre_hook(hook, with_kwargs=True))
                self._receive(stream.number, lambda x: capture.observe(x, stream.phase))
            case Kind.GRADIENT:
                gradient = OutputGradientHook(stream, capture, self._clock, places)
                self._undo.append(gradient.remove)
                self._keep(gradient, module.register_forward_hook(gradient, with_kwargs=True))
                self._receive_gradient(stream, capture)
            case Kind.INPUT_GRADIENT:
                both = InputGradientHook(stream, capture, self._clock, places)
                self._undo.append(both.of_output.remove)
                before = module.register_forward_pre_hook(both.before, with_kwargs=True)
                self._keep(both.before, before)
                self._keep(both.after, module.register_forward_hook(both.after))
            case Kind.PARAMETER_GRADIENT:
                self._register_on_parameter(stream, capture)
            case Kind.PARAMETER | Kind.UPDATE:
                self._weights.append(WeightStream(stream, capture))

    def _may_stand_in(self, module: torch.nn.Module) -> bool:
        """Of a host with steps so short that torch's own way to a module's hooks counts."""
        return not self._calls.counts_forwards and ForwardStandIn.fits(module)

    def _register_on_parameter(self, stream: HookStream, capture: Capture) -> None:
        parameter = stream.point.parameter
        assert parameter is not None
        if not parameter.requires_grad:
            stream.needs_no_gradient = True
            return
        had_hooks = has_accumulate_hooks(parameter)
        hook = ParameterGradientHook(stream, capture)
        handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

        def remove() -> None:
            handle.remove()
            if not had_hooks:
                drop_empty_accumulate_hooks(parameter)

        self._undo.append(remove)
        self._receive_gradient(stream, capture)

    def _register_of_text(self, stream: HookStream, capture: Capture, places: TokenPlaces) -> None:
        module, number = stream.point.module, graph_op.reserve_number()
        if stream.point.kind is Kind.ACTIVATION:
            hook = TextOutputHook(stream, capture, places, number)
            self._keep(hook, module.register_forward_hook(hook, with_kwargs=True))
        else:
            before = TextInputHook(stream, capture, places, number)
            self._keep(before, module.register_forward_pre_hook(before, with_kwargs=True))

        def receive_rows(x: torch.Tensor) -> None:
            try:
                tokens = places.of_input(x)
            except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
                capture.leave_out(error)
                return
            capture.observe(x, stream.phase, tokens)

        self._receive(number, receive_rows)
        self._receive(stream.number, lambda x: capture.observe(x, stream.phase))

    def _receive(self, number: int, receiver: graph_op.Receiver) -> None:
        graph_op.receive(number, receiver)
        self._undo.append(lambda: graph_op.stop_receiving(number))

    def _receive_gradient(self, stream: HookStream, capture: Capture) -> None:
        def receive(gradient: torch.Tensor) -> None:
            ticket = capture.draw(gradient, stream.phase)
            if ticket is not None:
                capture.send(gradient, ticket)

        self._receive(stream.number, receive)

    def _keep(self, hook: LiveHook, handle: RemovableHandle) -> None:
        self._hooks.append(hook)
        self._undo.append(handle.remove)

    def _remove_moved_hooks(self) -> None:
        mine = {id(hook) for hook in self._hooks}
        for model in {id(s.point.model): s.point.model for s in self._streams}.values():
            if model is not None:
                remove_hooks(model, lambda hook: id(hook) in mine)
        self._hooks.clear()


_hookers: weakref.WeakSet[ActivationHooker] = weakref.WeakSet()
_forks_are_watched = False


def _watch_forks() -> None:
    global _forks_are_watched
    if not _forks_are_watched:
        _forks_are_watched = True
        os.register_at_fork(after_in_child=_silence_all)


def _silence_all() -> None:
    for hooker in list(_hookers):
        hooker.silence()
