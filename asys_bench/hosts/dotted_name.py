"""A function by its dotted name, for hosts whose options name one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from asys_bench.contracts.host import HostError
from asys_bench.contracts.sink import Misfit


def load_function(name: str, option: str) -> Callable[..., Any]:
    """The function `package.module:function`.

    option: the configuration field that named it, for the message.

    Raises:
        HostError: it is not of that form, cannot be imported, or is not callable.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise HostError(f"{option}: {name!r} must be `package.module:function`")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise HostError(
            f"{option}: {name!r} cannot be loaded ({error}); install its package, or run from the "
            "folder that it is in with PYTHONPATH=."
        ) from error
    if not callable(found):
        raise HostError(f"{option}: {name!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def device_misfits(name: str) -> Iterator[Misfit]:
    """A device that torch does not know or this machine does not have; of an option `device`."""
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        yield Misfit(("device",), f"torch knows no such device: {reason}", name, "choose cpu")
        return
    if kind == "cuda" and not torch.cuda.is_available():
        yield Misfit(("device",), "torch finds no CUDA device here", name, "choose cpu")
