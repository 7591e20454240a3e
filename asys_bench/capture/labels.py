"""Labels from the host to the bus: `observation.label(reward=..., done=...)` (`contracts.labels`).

The host pays for a copy of a few numbers and a push, which is most of it: labels of several calls, said in
one call of `label`, are one packet. A label goes out in the host's call of `label`, under the tags of the
forward call that it is of; who joins it with the rows is the reader. Labels of a call that no hook has
captured stay here: one sampling coin decides for both (`contracts.coin`).

Nothing raises: what cannot be sent is counted in `labels_unsent`, and why is said once per kind. A tensor on
a device is sent as a hook's is, without waiting for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.capture.capture import Capture
from asys_bench.capture.hook_stream import FAILURES_IN_A_ROW, HookStream, Writer
from asys_bench.capture.host_state import (
    is_bare,
    is_graph_captured,
    plain,
    undisturbed,
    unreadable,
    unwatched,
)
from asys_bench.capture.notices import Notices
from asys_bench.capture.offload import Offload
from asys_bench.capture.points.hookpoints import HookPoint
from asys_bench.capture.sampling import Coin
from asys_bench.capture.tags.clock import StepClock, Tags
from asys_bench.capture.tags.moments import Moment, Moments
from asys_bench.capture.tags.text import RowTokens
from asys_bench.config.assembly import build_preprocessor
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.bus import BusError
from asys_bench.contracts.capture_port import STATE_CALL_INDEX, STATE_RATE, STATE_SEEN
from asys_bench.contracts.labels import (
    CALL_COLUMNS,
    LABEL_TEXT,
    MOST_ENCODING_BYTES,
    is_label_name,
    label_encoding,
    text_bytes,
    text_code,
)
from asys_bench.contracts.names import LABELS
from asys_bench.contracts.packet import NO_TOKEN_POSITION, Kind
from asys_bench.contracts.stats import Slot

log = logging.getLogger(__name__)

PACKET_BYTES = 1 << 16
"""Of labels of several calls: a larger packet may find no room in a small bus."""
MOST_ENCODINGS = 64
"""Different sets of names in one run: each has a place in the bus's table of names."""
_MOST_TEXTS = 1 << 16
_MOST_TEXTS_SENT = 4096
_MOST_HOOKS_ASKED, _MOST_CALLS_ASKED = 64, 8
_NARROW = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.uint8, torch.int16}
)
_NARROW_NUMPY = frozenset(np.dtype(one).char for one in ("f4", "f2", "?", "i1", "u1", "i2", "u2"))
Column = npt.NDArray[Any] | torch.Tensor
"""Values of one label, in host memory or on a device."""
NOTED_BELOW = 0.5
"""Where a hook captures as many of the calls, it is not noted which: to send the labels of all costs less."""
_TAP = torch.nn.Identity()  # stands for the stream among the hook points; never called


class _Calls(NamedTuple):
    """Calls that labels are sent of.

    places: [P], of each in the columns. tags: [P, 3], host step, weights version and microbatch.
    first: tags of the first. rate: `Moment.rate` of that.
    """

    places: npt.NDArray[np.intp]
    tags: npt.NDArray[np.int64]
    first: Tags
    rate: float

    @classmethod
    def of(cls, kept: Sequence[tuple[int, Moment]]) -> _Calls:
        """kept: (place, call); at least one."""
        first = kept[0][1]
        return cls(
            np.array([place for place, _ in kept]),
            np.array([one.tags[:CALL_COLUMNS] for _, one in kept]),
            first.tags,
            first.rate or 1.0,
        )

    def part(self, begin: int, end: int) -> _Calls:
        tags_P3 = self.tags[begin:end]
        step, version, microbatch = tags_P3[0].tolist()
        first = (step, version, microbatch, self.first[3])
        return _Calls(self.places[begin:end], tags_P3, first, self.rate)


class LabelSender:
    """Attached to a clock, whose `label` it implements. Any thread may call it.

    streams: of the hooks, whose coins tell which calls are captured.
    horizon: host steps after which a label is too late.
    one_call_per_step: no call of the model opens a frame, for there is one in each step.
    """

    def __init__(
        self,
        writer: Writer,
        slot: Slot,
        clock: StepClock,
        offload: Offload,
        streams: Sequence[HookStream],
        horizon: int,
        *,
        is_of_text: bool,
        one_call_per_step: bool,
        notices: Notices,
    ) -> None:
        self._writer, self._slot, self._clock, self._offload = writer, slot, clock, offload
        self._hooks, self._is_of_text, self._notices = tuple(streams), is_of_text, notices
        self._captures: dict[str, Capture] = {}
        self._by_names: dict[tuple[str, ...], Capture] = {}
        self._counts: HookStream | None = None
        self._names: set[str] = set()
        self._texts: dict[str, int] = {}
        self._texts_sent: set[str] = set()
        self._said: set[str] = set()
        self._failed_in_a_row = 0
        self._unsent = slot.counter("labels_unsent")
        self._one_call_per_step = one_call_per_step
        self._rates = tuple(stream.floats for stream in streams)
        clock.moments, clock.labels = Moments(horizon), self
        clock.moments.updated(clock.first_step, clock.weights_version)

    def close(self) -> None:
        """Send nothing from now on. Idempotent."""
        self._clock.moments = self._clock.labels = None
        for capture in self._captures.values():
            capture.close()
        self._captures.clear()
        self._by_names.clear()

    @property
    def notes_calls(self) -> bool:
        """See `StepClock.notes_calls`."""
        if self._one_call_per_step:
            for rates in self._rates:
                if rates[STATE_RATE] >= NOTED_BELOW:
                    return False  # all are sent, and of which call one is can be told from its step
        return True

    def send(
        self,
        step: int | Sequence[int] | None,
        microbatch: int | None,
        labels: Mapping[str, Any],
    ) -> None:
        """See `StepClock.label`. Never raises."""
        if not labels and not self.notes_calls:
            return
        clock = self._clock
        if self._failed_in_a_row >= FAILURES_IN_A_ROW or clock.constant:
            return
        if clock.paused and step is None:  # a step that is named is the training's own
            return
        try:
            if labels or not (step is None or isinstance(step, int)):
                unwatched(self._send, step, microbatch, labels)
            else:
                self._known_moment(step, microbatch)  # remembered, and sampled as it was now
            self._failed_in_a_row = 0
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            self._failed_in_a_row += 1
            self._refuse(f"{type(error).__name__}: {error}", type(error).__name__)
            if self._failed_in_a_row >= FAILURES_IN_A_ROW:
                self._refuse("no labels are sent any more: all of late have failed")

    def _send(
        self,
        step: int | Sequence[int] | None,
        microbatch: int | None,
        labels: Mapping[str, Any],
    ) -> None:
        if is_graph_captured():
            return  # nothing of it would arrive (`Offload.submit`)
        if step is not None and not isinstance(step, int):
            if np.ndim(step):
                _alone(self._send_calls, step, microbatch, labels)
                return
            step = int(np.asarray(step))
        moment = self._known_moment(step, microbatch)
        if moment is None or not labels:
            return
        if moment.rate:
            _alone(self._send_columns, moment, labels)
        else:
            self._sampled_out()

    def _known_moment(self, step: int | None, microbatch: int | None) -> Moment | None:
        """The forward call that is meant, with its rate; None: it came too late, which is said."""
        moment = self._moment(step, microbatch)
        if moment is None:
            self._refuse(
                f"labels of step {step} came when it was not known any more which calls it had (it is "
                f"{self._clock.host_step} now): raise labels.horizon, or send them earlier",
                "late",
            )
        elif moment.rate is None:
            moment.rate = self._rate(moment)
        return moment

    def _moment(self, step: int | None, microbatch: int | None) -> Moment | None:
        """The forward call that is meant; None: it is not known any more."""
        clock, moments = self._clock, self._clock.moments
        if moments is None:
            return None
        with clock.lock:
            if step is None and microbatch is None:
                if clock.call is not None:
                    return Moment(clock.call.tags, clock.call.held)
                if moments.last is not None:
                    return moments.last
            asked = clock.host_step if step is None else step
            found = moments.find(asked, microbatch)
            if found is not None:
                return found
            if asked != clock.host_step:
                return self._only_call(moments, asked) if not microbatch else None
            tags = clock.own_tags
            if microbatch is not None and microbatch != tags[2]:
                return None
            return moments.note(Moment(tags))

    def _only_calls(self, steps: Sequence[int]) -> _Calls | None:
        """The same of several steps at once; None: each must be asked for."""
        clock, moments = self._clock, self._clock.moments
        if not self._one_call_per_step or moments is None:
            return None
        steps_P = np.asarray(steps)
        if steps_P.ndim != 1 or steps_P.dtype.kind not in "iu" or not len(steps_P):
            return None
        with clock.lock:
            first, last = int(steps_P.min()), int(steps_P.max())
            begin = max(clock.host_step - moments.horizon, moments.noted_to + 1)
            versions_P = moments.versions_at(steps_P) if begin <= first else None
            if versions_P is None or last >= clock.host_step:
                return None
        tags_P3 = np.stack([steps_P, versions_P, np.zeros_like(steps_P)], axis=1)
        tags = (int(steps_P[0]), int(versions_P[0]), 0, NO_TOKEN_POSITION)
        return _Calls(np.arange(len(steps_P)), tags_P3, tags, 1.0)

    def _only_call(self, moments: Moments, step: int) -> Moment | None:
        """The call of a host that makes one in each step, of which nobody took note."""
        clock = self._clock
        if (
            not self._one_call_per_step
            or not clock.host_step - moments.horizon <= step < clock.host_step
        ):
            return None
        version = moments.version_at(step)
        if version is None:
            return None
        moment = Moment((step, version, 0, NO_TOKEN_POSITION))
        moment.rate = 1.0  # what was in force is not known any more
        return moment

    def _rate(self, moment: Moment) -> float:
        """See `Moment.rate`."""
        clock, top, is_kept = self._clock, 0.0, False
        is_newest = moment.tags[0] == clock.host_step and clock.here() is None
        if not is_newest or len(self._hooks) > _MOST_HOOKS_ASKED:
            return 1.0  # what was in force then is not known any more
        for stream in self._hooks:
            rate = stream.rate
            if rate >= 1.0:
                return 1.0
            last = stream.state[STATE_CALL_INDEX]
            calls = last + 1 if stream.state[STATE_SEEN] == clock.serial else 1
            if calls > _MOST_CALLS_ASKED:
                return 1.0
            top = max(top, rate)
            is_kept = is_kept or any(
                stream.coin.toss(moment.tags, index) < rate for index in range(calls)
            )
        return top if is_kept else 0.0

    def _send_columns(self, moment: Moment, labels: Mapping[str, Any]) -> None:
        known = self._by_names.get(tuple(labels)) if not moment.has_text else None
        if known is not None and _are_alike(labels):  # as the call before, nearly always
            known.send(_stacked(list(labels.values())), (moment.tags, 0, moment.rate or 1.0, None))
            return
        groups: dict[tuple[Any, tuple[int, ...]], dict[str, Column]] = {}
        for name, value in labels.items():
            column = self._column(name, value)
            if column is not None:
                device = column.device if isinstance(column, torch.Tensor) else None
                groups.setdefault((device, tuple(column.shape)), {})[name] = column
        for (device, shape), columns in groups.items():
            self._push(moment, device, shape, columns)

    def _send_calls(
        self, steps: Sequence[int], microbatch: int | None, labels: Mapping[str, Any]
    ) -> None:
        """Labels with one entry for each of `steps`, in the order of these."""
        columns: dict[str, Column] = {}
        for name, value in labels.items():
            column = self._column(name, value)
            if column is None:
                continue
            if not column.ndim or len(column) != len(steps):
                self._refuse(
                    f"label {name} of {len(steps)} steps has the shape {tuple(column.shape)}: its first "
                    "dimension must be the steps",
                    f"{name} of steps",
                )
                continue
            columns[name] = column
        calls = self._only_calls(steps) if not microbatch else None
        if calls is not None and all(isinstance(one, np.ndarray) for one in columns.values()):
            self._push_groups(calls, columns)
            return
        found = [self._known_moment(int(step), microbatch) for step in steps]
        kept = [(place, one) for place, one in enumerate(found) if one is not None and one.rate]
        if not kept and any(one is not None for one in found):
            self._sampled_out()
        if any(one.has_text for _, one in kept) or any(
            isinstance(column, torch.Tensor) for column in columns.values()
        ):  # padding is left out of each text, and a device's values go out by themselves
            for place, one in kept:
                self._send_columns(one, {name: value[place] for name, value in columns.items()})
            return
        if kept:
            self._push_groups(_Calls.of(kept), columns)

    def _push_groups(self, calls: _Calls, columns: Mapping[str, Column]) -> None:
        """Columns of one shape in a packet."""
        groups: dict[tuple[int, ...], dict[str, npt.NDArray[Any]]] = {}
        for name, column in columns.items():
            if isinstance(column, np.ndarray):
                groups.setdefault(column.shape[1:], {})[name] = column
        for shape, group in groups.items():
            self._push_calls(calls, shape, group)

    def _push_calls(
        self,
        calls: _Calls,
        shape: tuple[int, ...],
        columns: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """columns: [C, *shape] each."""
        names = tuple(columns)
        if (
            len(label_encoding(names, several=True).encode()) > MOST_ENCODING_BYTES
            and len(names) > 1
        ):
            half = len(names) // 2
            for part in (names[:half], names[half:]):
                self._push_calls(calls, shape, {name: columns[name] for name in part})
            return
        capture = self._capture(label_encoding(names, several=True))
        if capture is None:
            return
        row_bytes = 8 * (CALL_COLUMNS + len(names))
        each = max(1, PACKET_BYTES // (row_bytes * max(1, math.prod(shape))))
        for begin in range(0, len(calls.places), each):
            some = calls.part(begin, begin + each)
            off_P3 = some.tags - some.tags[0]
            exact = np.float32 if np.abs(off_P3).max() < 1 << 24 else np.float64
            of_call = off_P3.astype(exact).T.reshape(CALL_COLUMNS, -1, *(1 for _ in shape))
            spread = [np.broadcast_to(one, (len(some.places), *shape)) for one in of_call]
            rows = _stacked([*spread, *(column[some.places] for column in columns.values())])
            capture.send(rows, (some.first, 0, some.rate, None))

    def _column(self, name: str, value: Any) -> Column | None:
        """`value` as numbers; None: it has none, or cannot be read."""
        if value is None:
            return None
        if name not in self._names and not self._is_name(name):
            self._refuse(f"{name!r} is no name of a label: take one as Python's arguments have")
            return None
        if isinstance(value, torch.Tensor):
            why = "complex numbers" if value.is_complex() else unreadable(value)
            if why is not None:
                self._refuse(f"label {name}: {why}", f"{name} unreadable")
                return None
            tensor = plain(value)
            if not tensor.is_cpu:
                return tensor
            if tensor.dtype not in (torch.float32, torch.float64):
                tensor = tensor.to(torch.float32 if tensor.dtype in _NARROW else torch.float64)
            numbers: npt.NDArray[Any] = tensor.numpy()
            return numbers
        try:
            array: npt.NDArray[Any] = np.asarray(value)
        except (ValueError, TypeError) as error:
            self._refuse(f"label {name}: {error}", name)
            return None
        if array.dtype.kind in "US" or (
            array.dtype.kind == "O" and all(isinstance(one, str) for one in array.flat)
        ):
            return self._coded(array)
        if array.dtype.kind not in "biuf":
            self._refuse(f"label {name}: {type(value).__name__} holds no numbers or texts", name)
            return None
        return array

    def _is_name(self, name: str) -> bool:
        """Names that are none are refused again and again; the others are looked at once."""
        if is_label_name(name):
            self._names.add(name)
            return True
        return False

    def _coded(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Texts as numbers; what each says is sent once."""
        codes = np.empty(array.shape, dtype=np.float64)
        for index, text in np.ndenumerate(array):
            text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            code = self._texts.get(text)
            if code is None:
                if len(self._texts) >= _MOST_TEXTS:
                    self._texts.clear()
                code = self._texts[text] = text_code(text)
            codes[index] = code
            if text not in self._texts_sent and len(self._texts_sent) < _MOST_TEXTS_SENT:
                self._send_text(text)
        return codes

    def _send_text(self, text: str) -> None:
        capture = self._capture(LABEL_TEXT)
        if capture is None or self._counts is None:
            return
        before = self._counts.captured.value
        payload = torch.frombuffer(bytearray(text_bytes(text)), dtype=torch.uint8)
        capture.send(
            payload[None], ((self._clock.host_step, 0, 0, NO_TOKEN_POSITION), 0, 1.0, None)
        )
        if self._counts.captured.value > before:  # else the bus was full: again next time
            self._texts_sent.add(text)

    def _push(
        self, moment: Moment, device: Any, shape: tuple[int, ...], columns: Mapping[str, Column]
    ) -> None:
        names = tuple(columns)
        capture = self._by_names.get(names)
        if capture is None and (
            len(label_encoding(names).encode()) > MOST_ENCODING_BYTES and len(names) > 1
        ):
            half = len(names) // 2
            for part in (names[:half], names[half:]):
                self._push(moment, device, shape, {name: columns[name] for name in part})
            return
        if capture is None:
            capture = self._capture(label_encoding(names))
            if capture is None:
                return
            self._by_names[names] = capture
        rows, rate = _stacked(list(columns.values())), moment.rate or 1.0
        if not moment.has_text:
            capture.send(rows, (moment.tags, 0, rate, None))
            return
        for tensor, tokens in self._of_text(moment, shape, rows):
            capture.send(tensor, (moment.tags, 0, rate, tokens))

    def _of_text(
        self, moment: Moment, shape: tuple[int, ...], rows: torch.Tensor
    ) -> list[tuple[torch.Tensor, RowTokens | None]]:
        """`rows` [*shape, K] as they go out: of a text they are its tokens, without padding."""
        text, tokens = moment.shape, moment.tokens
        if not shape:
            return [(rows, None)]
        if text is None or tokens is None:
            self._refuse(
                "labels of a text came more than 32 calls later: which of its rows are padding is not "
                "known any more, and only labels of the whole call and of whole sequences are joined",
                "text",
            )
            return [(rows, None)]
        number = RowTokens(tokens.text, None, NO_TOKEN_POSITION)
        is_padded = tokens.kept is not None or tokens.real is not None
        if shape == text[:1] and is_padded:  # for tokens, and for what has a row per sequence
            spread = rows[:, None].expand(*text, rows.shape[-1])
            return [(rows, None), *self._of_text(moment, text, spread)]
        if shape != text and shape != (text[0] * text[1],):
            return [(rows, None)]
        if tokens.real is not None:
            flat = rows.reshape(-1, rows.shape[-1]).to(tokens.real.device, non_blocking=True)
            return [(flat, tokens)]
        if tokens.kept is None:
            return [(rows, number)]
        if not rows.is_cpu:
            self._refuse("labels on a device, of a text that is not: padding cannot be told apart")
            return []
        flat = rows.reshape(-1, rows.shape[-1])
        return [(flat.index_select(0, torch.from_numpy(tokens.kept)), number)]

    def _capture(self, encoding: str) -> Capture | None:
        """Sends packets of this encoding; None: there are too many, or this rank may not name it yet."""
        found = self._captures.get(encoding)
        if found is not None:
            return found
        if len(self._captures) >= MOST_ENCODINGS:
            self._refuse(f"more than {MOST_ENCODINGS} different sets of labels in one run")
            return None
        config = HookConfig(match=(LABELS,))
        kernel = build_preprocessor(config)
        kernel.encoding = encoding
        point = HookPoint(LABELS, _TAP, Kind.ACTIVATION, config)
        try:
            stream = HookStream(
                point, self._writer, self._slot, kernel, Coin(0), self._notices,
                is_of_text=self._is_of_text and encoding != LABEL_TEXT,
            )  # fmt: skip
        except BusError as error:
            self._refuse(f"{encoding}: {error}", "name")
            return None
        capture = Capture(
            stream, self._writer, self._clock, self._offload, is_of_text=self._is_of_text
        )
        self._captures[encoding], self._counts = capture, stream
        return capture

    def _sampled_out(self) -> None:
        if self._counts is not None:
            with self._writer.lock:
                self._counts.calls.add()
                self._counts.sampled_out.add()

    def _refuse(self, why: str, kind: str | None = None) -> None:
        """Count what is not sent, and say once why."""
        try:
            self._unsent.add()
            if (kind or why) not in self._said and len(self._said) < 16:
                self._said.add(kind or why)
                self._notices.say(f"labels: {why}")
        except Exception as error:  # noqa: BLE001 - a closed stats page or a broken logging handler
            log.debug("labels: %s", error)


def _alone(action: Callable[..., None], *arguments: Any) -> None:
    """Whatever modes the host is in."""
    if is_bare():
        action(*arguments)
    else:
        with undisturbed():
            action(*arguments)


def _are_alike(labels: Mapping[str, Any]) -> bool:
    """Whether all are arrays of numbers of one shape."""
    shape = None
    for value in labels.values():
        if type(value) is not np.ndarray or value.dtype.kind not in "biuf":
            return False
        if shape is not None and value.shape != shape:
            return False
        shape = value.shape
    return True


def _stacked(columns: Sequence[Column]) -> torch.Tensor:
    """[*rows, K]; float32 where that holds every column's values exactly, else float64."""
    if isinstance(columns[0], torch.Tensor):
        tensors = [column for column in columns if isinstance(column, torch.Tensor)]
        is_narrow = all(tensor.dtype in _NARROW for tensor in tensors)
        dtype = torch.float32 if is_narrow else torch.float64
        return torch.stack([tensor.to(dtype) for tensor in tensors], dim=-1)
    arrays = [column for column in columns if not isinstance(column, torch.Tensor)]
    narrow = all(array.dtype.char in _NARROW_NUMPY for array in arrays)
    out = np.empty((*arrays[0].shape, len(arrays)), dtype=np.float32 if narrow else np.float64)
    for index, array in enumerate(arrays):
        out[..., index] = array
    return torch.from_numpy(out)
