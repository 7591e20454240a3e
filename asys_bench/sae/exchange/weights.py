"""An SAE as numbers, whoever trained it: what every exchange format is written from.

Under SAELens's names, float32, for raw rows (no input scale left to apply):

    autoencoders   pre = (x - b_dec) W_enc + b_enc        x_hat = f W_dec + b_dec
    transcoders    pre = x W_enc + b_enc                  y_hat = f W_dec + b_dec (+ x W_skip^T)

    standard, transcoder, skip_transcoder    f = ReLU(pre)
    topk                                     f = ReLU(pre) of the k largest, else 0
    jumprelu, jumprelu_*transcoder           f = pre where pre > threshold, else 0
    gated                                    f = [z + b_gate > 0] ReLU(z exp(r_mag) + b_mag),
                                             z = (x - b_dec) W_enc

Shapes: W_enc[D, F], W_dec[F, Dout], W_skip[Dout, D], b_dec[Dout], all others [F].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

_LINEAR = ("W_enc", "W_dec", "b_enc", "b_dec")
TENSORS: Mapping[str, tuple[str, ...]] = {
    "standard": _LINEAR,
    "topk": _LINEAR,
    "jumprelu": (*_LINEAR, "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
    "transcoder": _LINEAR,
    "skip_transcoder": (*_LINEAR, "W_skip"),
    "jumprelu_transcoder": (*_LINEAR, "threshold"),
    "jumprelu_skip_transcoder": (*_LINEAR, "threshold", "W_skip"),
}
"""SAELens's architecture -> its tensors, no more and no fewer."""
ACTIVATION_UNITS = ("b_enc", "b_gate", "b_mag", "threshold")
"""Tensors [F] in units of the feature's activation: they scale with the encoder."""


@dataclass(frozen=True)
class SAEWeights:
    """See the module docstring."""

    architecture: str
    """A key of `TENSORS`."""
    tensors: Mapping[str, torch.Tensor]
    k: int | None = None
    """topk: active features per row. Others: the training's mean, where it is known."""
    widths: tuple[int, ...] = ()
    """Cumulative widths of Matryoshka groups, the last one d_sae; empty for others."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values; `model_name` and `hook_name` say where the rows come from, `outlier_norm` (where
    there is one) from which norm rows pass through unchanged."""

    @property
    def d_in(self) -> int:
        return self.tensors["W_enc"].shape[0]

    @property
    def d_sae(self) -> int:
        return self.tensors["W_enc"].shape[1]

    @property
    def d_out(self) -> int:
        return self.tensors["W_dec"].shape[1]

    @property
    def transcodes(self) -> bool:
        """It maps one hook's rows to another's, so b_dec is not subtracted from the input."""
        return self.architecture.endswith("transcoder")

    @property
    def hook_name(self) -> str:
        return str(self.metadata.get("hook_name") or "")

    @property
    def outlier_norm(self) -> float | None:
        """Rows of a larger norm pass through unchanged; None: no rows do."""
        limit = self.metadata.get("outlier_norm")
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            return None
        return float(limit)

    @property
    def trained_as(self) -> str:
        """The architecture that was trained: BatchTopK and Matryoshka SAEs are JumpReLU SAEs
        afterwards."""
        return str(self.metadata.get("training_architecture") or self.architecture)

    @property
    def decoder_norm_F(self) -> torch.Tensor:
        """float32[F]: norm of each feature's decoder row."""
        norm_F: torch.Tensor = torch.linalg.vector_norm(self.tensors["W_dec"], dim=1)
        return norm_F

    @property
    def threshold(self) -> float | None:
        """The one threshold of all features; None when they differ or there is none."""
        threshold_F = self.tensors.get("threshold")
        if threshold_F is None or not bool((threshold_F == threshold_F[0]).all()):
            return None
        return float(threshold_F[0])

    def problem(self) -> str | None:
        """What is inconsistent about the tensors; None when nothing is."""
        wanted = TENSORS.get(self.architecture)
        if wanted is None:
            return f"architecture {self.architecture!r}; valid: {', '.join(TENSORS)}"
        if set(wanted) != set(self.tensors):
            return f"{self.architecture} has tensors {sorted(wanted)}, got {sorted(self.tensors)}"
        if any(self.tensors[name].ndim != 2 for name in ("W_enc", "W_dec")):
            return "W_enc and W_dec must be matrices"
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.d_sae),
            "W_dec": (self.d_sae, self.d_out),
            "W_skip": (self.d_out, self.d_in),
            "b_dec": (self.d_out,),
        }
        for name, tensor in self.tensors.items():
            shape = shapes.get(name, (self.d_sae,))
            if tuple(tensor.shape) != shape:
                return f"{name} is {tuple(tensor.shape)}, wanted {shape}"
            if not bool(torch.isfinite(tensor).all()):
                return f"{name} is not finite"
        if not self.transcodes and self.d_in != self.d_out:
            return f"W_dec makes rows of {self.d_out} from rows of {self.d_in}"
        if self.architecture == "topk" and not (self.k and 1 <= self.k <= self.d_sae):
            return f"k {self.k!r} is not in 1..{self.d_sae}"
        return None

    def scaled_features(self, factor_F: torch.Tensor) -> SAEWeights:
        """The same reconstruction with each activation `factor` (> 0) times as large.

        Of topk only a uniform factor keeps which features are chosen.
        """
        changed = dict(self.tensors)
        changed["W_enc"] = changed["W_enc"] * factor_F
        changed["W_dec"] = changed["W_dec"] / factor_F.unsqueeze(1)
        for name in ACTIVATION_UNITS:
            if name in changed:
                changed[name] = changed[name] * factor_F
        return replace(self, tensors=changed)


class ExchangeError(ValueError):
    """A format cannot express an SAE, or a folder cannot be taken over.

    `reason` says why in the format's own terms; `alternative` is what to do instead.
    """

    def __init__(self, what: str, reason: str, alternative: str) -> None:
        super().__init__(f"{what}: {reason}; {alternative}")
        self.what, self.reason, self.alternative = what, reason, alternative
