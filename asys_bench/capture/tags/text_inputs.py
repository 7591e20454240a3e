"""What a text model is being fed: which positions are padding, and which token and position each is.

Modules that take text are found by the signature of their own forward (`input_ids`), wherever they sit
in the model. Where there is none, those around an embedding are *plain* readers: the first matrix of
integers that one is called with is taken for text as soon as an embedding inside is called with it.
When one is called, its root hook (`hooks.root_hook`) has the arguments read here:

- `Text` says which of the B * T positions are tokens. Captures of the modules inside leave the others
  out (`token_places`), so that no SAE learns padding.
- the stream `tokens` gets int32 rows (token id, position), one per token in the same order, under a
  number that the other captures of the call carry too.

The innermost module around that takes text decides, so the encoder and the decoder of one model each
have their own. A module that is given another input too (pictures, sound), or two texts, decides for
nothing in it: only the modules inside that take the text alone do.

A plain model that gives its embeddings a second sequence is not read any more, because it is not known
what is whose inside. Its padding is that of a mask or of `Embedding.padding_idx`.

An argument that has no readable bytes (`host_state.readable`) is no ids, no mask and no positions. A call
that cannot be read carries no text, and the next one is read again.

With a key-value cache T is the new tokens alone and S counts the cached ones; positions go on.

A text on a device is read without asking for a value, which would stall the host: ids, positions and the
mask travel as they are, and the reader of a packet leaves padding out (`encodings.padding`). What can only
be told by values is not told there: whether another tensor holds the same ids (it is the same if its memory
is), whether integers beside a plain model's text are positions (those of one dimension are) and the
position of a sequence's first token, which is in the token rows alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from asys_bench.capture.hook_stream import FAILURES_IN_A_ROW
from asys_bench.capture.host_state import address, is_graph_captured, on_device, readable
from asys_bench.capture.offload import SERVED
from asys_bench.capture.points.hookpoints import HookPoint
from asys_bench.capture.points.selection import passes_arguments_on, positions
from asys_bench.capture.tags.clock import CallFrame, StepClock
from asys_bench.capture.tags.padding_mask import real_tokens
from asys_bench.capture.tags.text import (
    EMBEDS,
    IDS,
    MASK,
    SEQUENCES,
    RowTokens,
    Text,
    TextReader,
)
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.names import TOKENS
from asys_bench.contracts.packet import NO_TEXT, Kind
from asys_bench.contracts.preprocessor import Positions
from asys_bench.contracts.tensor_memory import memory_fault

log = logging.getLogger(__name__)


Padding = Positions | torch.Tensor | None
"""`Text.kept`, or on a device `Text.real_BT`."""


class TokenRows(Protocol):
    """The part of `capture.capture.Capture` that is used here."""

    @property
    def observe(self) -> SendRows:
        """Sends the rows of a call's first text."""

    @property
    def observe_again(self) -> SendRows:
        """Sends those of its further ones: they are of the same call, and share its sampling coin."""


SendRows = Callable[["torch.Tensor | None", "bool | None", "RowTokens | None"], None]


def takes_text(module: torch.nn.Module) -> bool:
    """Whether `module` takes text, going by the signature of its forward."""
    return IDS in positions(module)


class _Tap(torch.nn.Module):
    """Stands for the stream of token rows among the hook points; never called."""


class TextInputs:
    """Reads the text of the forward calls of one model.

    token_rows: the stream of token rows; None while nobody wants them.
    readers: module that takes text -> its reader, outermost first.
    """

    def __init__(self, model: torch.nn.Module, called: torch.nn.Module) -> None:
        self.readers = {module: _reader(module) for module in model.modules() if takes_text(module)}
        self.embeddings: list[torch.nn.Module] = []
        if not self.readers:
            self.readers, self.embeddings = _plain_readers(model)
        self._plain = bool(self.embeddings)
        self._recognised = not self._plain
        self._offered = False
        self.token_rows: TokenRows | None = None
        self._tap = _Tap()
        self._wrappers = [module for module in (called, model) if module not in self.readers]
        self._fallback = next(iter(self.readers.values()), None)
        self._two_texts = any(reader.two_texts for reader in self.readers.values())
        self._plain_is_two = False
        self._explained: set[str] = set()
        self._failed_in_a_row = 0

    @classmethod
    def of(cls, model: torch.nn.Module, root: torch.nn.Module | None = None) -> TextInputs | None:
        """None when `model` takes no text.

        root: what the user calls, where that is a wrapper which passes its arguments on to `model`.
        """
        found = cls(model, root if root is not None else model)
        if not found.readers and MASK not in positions(model):
            return None
        return found

    @property
    def points(self) -> list[HookPoint]:
        """The stream of token rows as a hook point."""
        config = HookConfig(match=(TOKENS,))
        return [HookPoint(TOKENS, self._tap, Kind.ACTIVATION, config)] if self.readers else []

    @property
    def is_text(self) -> bool:
        """Whether the model takes text, as far as is known."""
        return self._recognised and not self._plain_is_two

    def send_no_rows(self) -> None:
        """The stream of token rows is closed."""
        self.token_rows = None

    def is_point(self, point: HookPoint) -> bool:
        """Whether `point` is the stream of token rows."""
        return point.module is self._tap

    def reader_of(self, module: torch.nn.Module) -> TextReader | None:
        """The reader of a root: its own, or for a wrapper that of what it passes its arguments to."""
        if module in self.readers:
            return self.readers[module]
        names = positions(module)
        if self._fallback is None:
            return TextReader(names) if MASK in names else None
        if passes_arguments_on(module):
            names = self._fallback.names
        return TextReader(names, two_texts=self._two_texts, plain=self._plain)

    def enter(
        self, frame: CallFrame, reader: TextReader, args: tuple[Any, ...], kwargs: dict[str, Any],
        clock: StepClock,
    ) -> None:  # fmt: skip
        """A root is called in `frame`: set the text that holds inside of it. Never raises."""
        if self._off:
            frame.text = None
            return
        try:
            with torch.no_grad():
                self._enter(frame, reader, args, kwargs, clock)
            self._failed_in_a_row = 0
        except Exception as error:  # noqa: BLE001 - fail-open: nothing of ours may reach the host
            self._fail(frame, error)

    def embedded(
        self, frame: CallFrame | None, module: Any, ids: torch.Tensor, clock: StepClock
    ) -> None:
        """An embedding of a plain model is called with `ids`. Never raises."""
        if self._off or frame is None:
            return
        text = frame.text if frame.text is not None else frame.offered
        if text is None or text.ids_BT is None:
            return
        try:
            given = _legible(ids)
            if given is not None and memory_fault(text.ids_BT) is None:
                with torch.no_grad():
                    self._embedded(frame, text, text.ids_BT, module, given.detach(), clock)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(frame, error)

    def _embedded(
        self, frame: CallFrame, text: Text, ids_BT: torch.Tensor, module: Any, ids: torch.Tensor,
        clock: StepClock,
    ) -> None:  # fmt: skip
        if ids.is_cpu and ids_BT.is_cpu:
            ids, ids_BT = ids.long(), ids_BT.long()
        if _same(ids, ids_BT):
            if frame.text is None and text.beside is None:
                self._recognise(text, ids_BT, module)
                self._hold(frame, text, clock)
                return
            is_known = True
        else:
            if text.shape[0] in ids.shape[:2] and not _counts_up(ids):
                text.beside = list(ids.shape)
            is_known = frame.text is not None
        if is_known and text.beside is not None:
            frame.text = frame.offered = None
            self._plain_is_two = True
            self._explain(
                f"embeddings are called with integers {text.beside} beside the text of "
                f"{list(text.shape)}: it is not known which rows are of which, and none carries a token"
            )

    def _recognise(self, text: Text, ids_BT: torch.Tensor, module: Any) -> None:
        padding = getattr(module, "padding_idx", None)
        if text.padding is None and padding is not None:
            text.padding = _kept(ids_BT != padding)
            if text.padding is not None:
                _place(text, _positions(ids_BT, None, text.padding, _NO_READER, (), {}))
        if not self._recognised:
            self._recognised = True
            has_padding = padding is not None or text.mask is not None
            log.info(
                "integers %s that go into an embedding are taken for text%s",
                list(text.shape),
                "" if has_padding else "; what of it is padding is not known: nothing says so",
            )

    def ended(self) -> None:
        """An outermost call has returned."""
        if self._offered and not self._recognised and not self._plain_is_two:
            self._explain(
                "the model is called with a matrix of integers that goes into no embedding as it is: "
                "it is not taken for text, and no row carries a token (a parameter that is called "
                "input_ids is)"
            )

    @property
    def _off(self) -> bool:
        return self._failed_in_a_row >= FAILURES_IN_A_ROW

    def _fail(self, frame: CallFrame, error: Exception) -> None:
        self._failed_in_a_row += 1
        frame.text = frame.offered = None
        what = f"{type(error).__name__}: {error}"
        if self._off:
            log.warning("padding and token ids are no longer read, after %s", what)
        else:
            self._explain(
                f"a call's text could not be read ({what}): rows of such calls carry no tokens, and "
                "rows of padding among them are captured like any other"
            )

    def _enter(
        self, frame: CallFrame, reader: TextReader, args: tuple[Any, ...], kwargs: dict[str, Any],
        clock: StepClock,
    ) -> None:  # fmt: skip
        if reader.two_texts or (reader.plain and self._plain_is_two):
            frame.text = frame.offered = None
            return
        given = reader.ids(args, kwargs)
        ids_BT = _matrix(given)
        if ids_BT is None and on_device(given) is not None and given.device.type not in SERVED:
            frame.text = frame.offered = None
            self._explain(
                f"text on {given.device.type} is not read: rows of padding are captured like any "
                "other, and token ids are not recorded"
            )
            return
        if reader.plain and ids_BT is None:
            return
        if ids_BT is not None and not ids_BT.is_cpu and is_graph_captured():
            frame.text = frame.offered = None  # nothing of it arrives anyway (`Offload.submit`)
            return
        mask = reader.argument(MASK, args, kwargs)
        around = frame.text if frame.text is not None else frame.offered
        if ids_BT is not None:
            shape = (ids_BT.shape[0], ids_BT.shape[1])
            is_around = around is not None and _same(ids_BT, around.ids_BT)
        else:
            leading = _leading(reader.argument(EMBEDS, args, kwargs), mask)
            if leading is None:
                return  # a call that carries no text of its own
            shape = leading
            is_around = around is not None and around.shape == shape
        others = list(reader.other_inputs(args, kwargs))
        states = [v for name, v in others if any(part in name for part in SEQUENCES)]
        text = around if is_around else None
        if text is None or (mask is not None and mask is not text.mask):
            padding = self._padding(mask, shape, reader, args, kwargs)
            if text is None or (padding is not None and not _equal(padding, text.padding)):
                ids_BT = ids_BT if ids_BT is not None or text is None else text.ids_BT
                text = self._text(shape, ids_BT, mask, padding, reader, args, kwargs)
        text.others |= {((s.shape[0], s.shape[1]), address(s)) for s in states if not s.is_nested}
        is_known = not reader.plain or (is_around and around is frame.text)
        if len(states) < len(others):  # pictures or sound: it is not known what is whose inside
            frame.text, frame.offered = None, None if reader.plain else text
        elif not is_known:
            frame.text, frame.offered = None, text
            self._offered = True
        else:
            self._hold(frame, text, clock)

    def _text(
        self, shape: tuple[int, int], ids_BT: torch.Tensor | None, mask: Any,
        padding: Padding, reader: TextReader, args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> Text:  # fmt: skip
        text = Text(shape, ids_BT, mask)
        text.padding = padding
        if ids_BT is not None:
            _place(text, _positions(ids_BT, mask, padding, reader, args, kwargs))
        return text

    def _hold(self, frame: CallFrame, text: Text, clock: StepClock) -> None:
        """`text` holds from here on; its token rows are sent once."""
        frame.text = frame.held = text
        if self.token_rows is None or text.number != NO_TEXT or text.ids_BT is None:
            return
        assert text.positions_BT is not None
        number = clock.number_text(frame)
        if number == NO_TEXT:
            self._explain("more texts in one step and microbatch than have numbers: no tokens")
            return
        text.number = number
        rows_N2 = torch.stack([text.ids_BT.reshape(-1), text.positions_BT.reshape(-1)], dim=1)
        if text.kept is not None:
            rows_N2 = rows_N2.index_select(0, torch.from_numpy(text.kept))
        send = self.token_rows.observe_again if frame.sent else self.token_rows.observe
        frame.sent += 1
        tokens = RowTokens(number, None, text.position, text.real_BT)
        send(rows_N2.to(torch.int32), None, tokens)

    def _padding(
        self, mask: Any, shape: tuple[int, int], reader: TextReader, args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Padding:  # fmt: skip
        if mask is None:
            return None
        found = real_tokens(mask, shape, _seen(reader, args, kwargs))
        if found is None or not found.is_of_a_mask:
            kind = (
                f"{list(mask.shape)} of {mask.dtype}"
                if isinstance(mask, torch.Tensor) and not mask.is_nested
                else type(mask).__name__
            )
            self._explain(
                f"the attention mask ({kind}) of a call with {list(shape)} tokens cannot be read: "
                "rows of padding are captured like any other"
            )
            return None
        return _kept(found.real_BT)

    def _explain(self, what: str) -> None:
        if what not in self._explained and len(self._explained) < 8:
            self._explained.add(what)
            log.warning("%s", what)


def _reader(module: torch.nn.Module) -> TextReader:
    names = positions(module)
    return TextReader(names, two_texts=any(n != IDS and n.endswith(IDS) for n in names))


_NO_READER = TextReader({})


def _plain_readers(
    model: torch.nn.Module,
) -> tuple[dict[torch.nn.Module, TextReader], list[torch.nn.Module]]:
    """(readers of what is around an embedding, outermost first, the embeddings)."""
    embeddings: list[torch.nn.Module] = [
        module for module in model.modules() if isinstance(module, torch.nn.Embedding)
    ]
    around = [
        module
        for module in model.modules()
        if module not in embeddings
        and not isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict)
        and any(isinstance(inside, torch.nn.Embedding) for inside in module.modules())
    ]
    readers = {module: TextReader(positions(module), plain=True) for module in around}
    return readers, embeddings if readers else []


def _counts_up(ids: torch.Tensor) -> bool:
    """Whether these are positions or segments, and no tokens: each row goes up by 0 or 1."""
    if not ids.is_cpu:
        return ids.ndim < 2
    if not ids.numel():
        return True
    rows = ids.reshape(-1, ids.shape[-1])
    if rows.shape[1] == 1:
        return bool((rows == rows[0]).all())
    steps = rows[:, 1:] - rows[:, :-1]
    return bool(((steps == 0) | (steps == 1)).all())


def _kept(real_BT: torch.Tensor) -> Padding:
    """Where the tokens are; on a device it is not known whether there is any padding."""
    if not real_BT.is_cpu:
        return real_BT
    if bool(real_BT.all()):
        return None
    return np.flatnonzero(real_BT.numpy()).astype(np.int64)


def _place(text: Text, positions_BT: torch.Tensor) -> None:
    """Give `text` its positions; that of its first token stands for those that follow it one by one."""
    text.positions_BT = positions_BT
    batch, length = text.shape
    if batch == 1 and length and positions_BT.is_cpu:
        places_T = positions_BT[0].numpy()
        if text.kept is not None and len(text.kept):
            places_T = places_T[text.kept]
        if (np.diff(places_T) == 1).all():  # and no sequences packed into one
            text.position = int(places_T[0])


def _matrix(value: Any) -> torch.Tensor | None:
    """A two-dimensional tensor of integers that can be read, or None."""
    ids = _legible(value)
    if ids is None or ids.ndim != 2:
        return None
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool)
    return ids.detach() if whole else None


def _leading(embeds: Any, mask: Any) -> tuple[int, int] | None:
    """(B, T) of embeddings, or of a mask that came without them."""
    for value, dimensions in ((embeds, 3), (mask, 2)):
        if type(value) is torch.Tensor and not value.is_nested and value.ndim == dimensions:
            return value.shape[0], value.shape[1]
    return None


def _legible(value: Any) -> torch.Tensor | None:
    """`value` where it is a tensor that is readable here, or on a device that is served."""
    found = readable(value)
    if found is None:
        found = on_device(value)
        if found is not None and found.device.type not in SERVED:
            return None
    return found


def _same(ids_BT: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Whether they hold the same ids, as far as that can be told where they are."""
    if other is None or ids_BT is other:
        return other is not None
    if ids_BT.shape != other.shape or ids_BT.dtype != other.dtype:
        return False
    if ids_BT.is_cpu != other.is_cpu or memory_fault(other) is not None:
        return False
    if ids_BT.is_cpu:
        return torch.equal(ids_BT, other)
    return address(ids_BT) == address(other) and ids_BT.stride() == other.stride()


def _equal(one: Padding, other: Padding) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return one is other


def _seen(reader: TextReader, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | torch.Tensor:
    """Tokens in the key-value cache before this call; of no dimension where only a device knows."""
    given = _legible(reader.argument("cache_position", args, kwargs))
    if given is not None and given.ndim == 1 and len(given):
        return int(given[0]) if given.is_cpu else given.detach()[0]
    cache = reader.argument("past_key_values", args, kwargs)
    if not hasattr(cache, "get_seq_length"):
        return 0
    length = cache.get_seq_length()
    if isinstance(length, torch.Tensor) and not length.is_cpu:
        return length.detach().reshape(())
    return int(length)


def _positions(
    ids_BT: torch.Tensor, mask: Any, padding: Padding, reader: TextReader,
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    given = _beside(reader.argument("position_ids", args, kwargs), ids_BT)
    length = ids_BT.shape[1]
    if given is not None:
        fits = given.shape[1] == length and given.shape[0] in (1, ids_BT.shape[0])
        if fits:
            return given.expand(ids_BT.shape).to(ids_BT.dtype)
    marks_BS = _beside(mask, ids_BT)
    if marks_BS is not None and not marks_BS.is_floating_point():
        fits = marks_BS.shape[0] == ids_BT.shape[0] and marks_BS.shape[1] >= length
        if fits:
            counted_BS = (marks_BS != 0).long().cumsum(1) - 1
            return counted_BS.clamp(min=0)[:, -length:].to(ids_BT.dtype)
    seen = _seen(reader, args, kwargs)
    if ids_BT.is_cpu and isinstance(seen, torch.Tensor):
        seen = 0  # a device's
    going_on_BT = torch.ones_like(ids_BT, dtype=torch.long).cumsum(1) - 1 + seen
    real_BT = _flags(padding, ids_BT)
    if real_BT is not None:
        counted_BT = (real_BT.long().cumsum(1) - 1).clamp(min=0)
        if isinstance(seen, torch.Tensor):
            going_on_BT = torch.where(seen == 0, counted_BT, going_on_BT)
        elif not seen:
            going_on_BT = counted_BT
    return going_on_BT.to(ids_BT.dtype)


def _beside(value: Any, ids_BT: torch.Tensor) -> torch.Tensor | None:
    """A matrix that can be read, where the ids are."""
    found = _legible(value)
    if found is None or found.ndim != 2 or found.device != ids_BT.device:
        return None
    return found.detach()


def _flags(padding: Padding, ids_BT: torch.Tensor) -> torch.Tensor | None:
    """Which ids are tokens; None where that is not known, or all are."""
    if isinstance(padding, torch.Tensor):
        return padding if padding.device == ids_BT.device else None
    if padding is None or not ids_BT.is_cpu:
        return None
    flags_N = torch.zeros(ids_BT.numel(), dtype=torch.bool)
    return flags_N.index_fill_(0, torch.from_numpy(padding), True).view(ids_BT.shape)
