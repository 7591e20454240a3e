"""Running mean and scale of a stream of rows that drifts.

Statistics of the most recent `window_rows` rows, kept as a queue of chunk summaries that are merged
by Chan et al. 1979's update, so a large mean does not eat the variance's digits. The window has a
hard end: with an exponential one, a variance that falls by 1e5 would take 12 windows to be seen.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from asys_bench.sae.architectures.scaling import InputScaling, JointScaling, PairScaling
from asys_bench.sae.checkpoint.checkpoint_files import StateDict, pick, put, tensor_of

LEAST_SQUARE = 1e-24
"""Below this the rows count as constant (or zero) and are not scaled."""
MOST_CHUNKS = 64
"""Small chunks are merged until a summary holds 1/64 of the window."""


@dataclass(frozen=True, slots=True)
class _Summary:
    """Moments of some rows, float64."""

    mass: float
    mean_D: torch.Tensor
    variance: float
    norm: float

    def merged(self, other: _Summary) -> _Summary:
        mass = self.mass + other.mass
        share = other.mass / mass
        gap_D = other.mean_D - self.mean_D
        return _Summary(
            mass,
            self.mean_D + share * gap_D,
            (1 - share) * self.variance
            + share * other.variance
            + share * (1 - share) * float(gap_D.square().sum()),
            self.norm + share * (other.norm - self.norm),
        )


class Normalizer:
    """Mean, total variance and mean norm of rows float32[*, D]."""

    def __init__(self, d_in: int, mode: Literal["none", "std", "norm"], window_rows: int) -> None:
        self.mode = mode
        self._d_in, self._window = d_in, window_rows
        self._chunks: deque[_Summary] = deque()
        self._all = _Summary(0.0, torch.zeros(d_in, dtype=torch.float64), 0.0, 0.0)

    @property
    def mean_D(self) -> torch.Tensor:
        """float64[D]."""
        return self._all.mean_D

    @property
    def variance(self) -> float:
        """E||x - mean||^2."""
        return self._all.variance

    @property
    def mean_norm(self) -> float:
        """E||x||."""
        return self._all.norm

    def update(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor, norm_N: torch.Tensor | None = None
    ) -> None:
        """Take in finite rows; row i counts as `weight_N[i]` > 0 rows. norm_N: their norms, if known."""
        if len(rows_ND) == 0:
            return
        share_N = weight_N / weight_N.sum()
        norm_N = torch.linalg.vector_norm(rows_ND, dim=1) if norm_N is None else norm_N
        mean_D = share_N @ rows_ND
        new = _Summary(
            float(weight_N.double().sum()),
            mean_D.double(),
            float(share_N @ (rows_ND - mean_D).square().sum(1)),
            float(share_N @ norm_N),
        )
        if self._chunks and self._chunks[-1].mass < self._window / MOST_CHUNKS:
            new = self._chunks.pop().merged(new)
        self._chunks.append(new)
        mass = sum(chunk.mass for chunk in self._chunks)
        while len(self._chunks) > 1 and mass - self._chunks[0].mass >= self._window:
            mass -= self._chunks.popleft().mass
        self._merge()

    def _merge(self) -> None:
        merged: _Summary | None = None
        for chunk in self._chunks:
            merged = chunk if merged is None else merged.merged(chunk)
        if merged is not None:
            self._all = merged

    @property
    def drift(self) -> float:
        """How far the mean has moved within the window, in standard deviations of the window:
        ||mean of the newer half - mean of the older half|| / sqrt(variance). 0 for one chunk."""
        chunks = list(self._chunks)
        half = len(chunks) // 2
        if half == 0 or self.variance <= LEAST_SQUARE:
            return 0.0
        older, newer = (
            functools.reduce(_Summary.merged, part) for part in (chunks[:half], chunks[half:])
        )
        moved = float(torch.linalg.vector_norm(newer.mean_D - older.mean_D))
        return moved / math.sqrt(self.variance)

    @property
    def scale(self) -> float:
        """s such that s * x (std: s * (x - mean)) has the wanted size; 1.0 for constant rows."""
        square = {"none": 0.0, "std": self.variance, "norm": self.mean_norm**2}[self.mode]
        if not math.isfinite(square) or square <= LEAST_SQUARE:
            return 1.0
        return math.sqrt(self._d_in / square)

    @property
    def scaling(self) -> InputScaling:
        """What the SAE should see of raw rows now."""
        if self.mode != "std":
            return InputScaling(self.scale, torch.zeros(self._d_in))
        return InputScaling(self.scale, self.mean_D.float())

    def state_dict(self) -> StateDict:
        columns = [(chunk.mass, chunk.variance, chunk.norm) for chunk in self._chunks]
        means = [chunk.mean_D for chunk in self._chunks]
        empty = torch.zeros(0, self._d_in, dtype=torch.float64)
        return {
            "chunks": torch.tensor(columns, dtype=torch.float64).reshape(-1, 3),
            "means": torch.stack(means) if means else empty,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of rows of this width."""
        chunks_C3, means_CD = tensor_of(state, "chunks"), tensor_of(state, "means")
        if means_CD.shape != (len(chunks_C3), self._d_in) or chunks_C3.shape[1:] != (3,):
            raise ValueError(f"moments {tuple(means_CD.shape)} are not of {self._d_in}-wide rows")
        self._chunks = deque(
            _Summary(mass, mean_D.clone(), variance, norm)
            for (mass, variance, norm), mean_D in zip(
                chunks_C3.tolist(), means_CD.double(), strict=True
            )
        )
        self._merge()


class PairNormalizer:
    """Running mean and scale of a transcoder's rows: a `Normalizer` for the input, columns [0, d_in),
    and one for the output, columns [d_in, d_in + d_out)."""

    def __init__(
        self, d_in: int, d_out: int, mode: Literal["none", "std", "norm"], window_rows: int
    ) -> None:
        self._d_in = d_in
        self._input = Normalizer(d_in, mode, window_rows)
        self._output = Normalizer(d_out, mode, window_rows)

    def update(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor, norm_N: torch.Tensor | None = None
    ) -> None:
        """Take in finite rows; row i counts as `weight_N[i]` > 0 rows. norm_N: the norms of their
        inputs, if known."""
        self._input.update(rows_ND[:, : self._d_in], weight_N, norm_N)
        self._output.update(rows_ND[:, self._d_in :], weight_N)

    @property
    def variance(self) -> float:
        """E||y - mean||^2 of the output."""
        return self._output.variance

    @property
    def drift(self) -> float:
        """The larger one of input and output; see `Normalizer.drift`."""
        return max(self._input.drift, self._output.drift)

    @property
    def scaling(self) -> PairScaling:
        """What the SAE should see of raw rows now."""
        return PairScaling(self._input.scaling, self._output.scaling)

    def state_dict(self) -> StateDict:
        state: StateDict = {}
        put(state, "input", self._input.state_dict())
        put(state, "output", self._output.state_dict())
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of rows of these widths."""
        self._input.load_state_dict(pick(state, "input"))
        self._output.load_state_dict(pick(state, "output"))


class JointNormalizer:
    """Running mean and scale of a crosscoder's rows: a `Normalizer` for each hook's columns."""

    def __init__(
        self, widths: Sequence[int], mode: Literal["none", "std", "norm"], window_rows: int
    ) -> None:
        self._widths = list(widths)
        self._hooks = tuple(Normalizer(width, mode, window_rows) for width in widths)

    def update(
        self, rows_ND: torch.Tensor, weight_N: torch.Tensor, norm_N: torch.Tensor | None = None
    ) -> None:
        """Take in finite rows; row i counts as `weight_N[i]` > 0 rows. norm_N is of whole rows, and
        no hook's."""
        for hook, part_ND in zip(self._hooks, torch.split(rows_ND, self._widths, 1), strict=True):
            hook.update(part_ND, weight_N)

    @property
    def variance(self) -> float:
        """E||x - mean||^2 of scaled rows, over the square of `JointScaling.scale`, so that it is to
        that scale what an autoencoder's is to its own."""
        own = sum(hook.variance * hook.scale**2 for hook in self._hooks)
        return own / self.scaling.scale**2

    @property
    def drift(self) -> float:
        """The largest one of the hooks; see `Normalizer.drift`."""
        return max(hook.drift for hook in self._hooks)

    @property
    def scaling(self) -> JointScaling:
        """What the crosscoder should see of raw rows now."""
        return JointScaling(tuple(hook.scaling for hook in self._hooks))

    def state_dict(self) -> StateDict:
        state: StateDict = {}
        for index, hook in enumerate(self._hooks):
            put(state, f"hook_{index}", hook.state_dict())
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Raises ValueError when the state is not of rows of these widths."""
        for index, hook in enumerate(self._hooks):
            hook.load_state_dict(pick(state, f"hook_{index}"))


def geometric_median(
    x_ND: torch.Tensor, iterations: int = 50, tolerance: float = 1e-6
) -> torch.Tensor:
    """The point with the least summed distance to the rows, a centre that outliers do not move, by
    Weiszfeld's iteration: `m <- sum(x_i / d_i) / sum(1 / d_i)`, d_i = ||x_i - m||, from the mean.

    x_ND: finite float[N, D], N >= 1. Returns x's dtype [D]. Stops when the centre moves less than
    `tolerance` of the mean distance. Used for b_dec as in Bricken et al. 2023.
    """
    rows_ND = x_ND.double()
    mean_D = rows_ND.mean(0)
    rows_ND = rows_ND - mean_D  # squared distances keep their digits
    square_N = rows_ND.square().sum(1)
    center_D = torch.zeros_like(mean_D)
    for _ in range(iterations):
        square_distance_N = square_N - 2.0 * (rows_ND @ center_D) + center_D.square().sum()
        distance_N = square_distance_N.clamp_min_(0.0).sqrt_()
        spread = float(distance_N.mean())
        if spread == 0.0:
            break
        pull_N = 1.0 / distance_N.clamp_min(1e-9 * spread)
        new_D = pull_N @ rows_ND / pull_N.sum()
        moved = float(torch.linalg.vector_norm(new_D - center_D))
        center_D = new_D
        if moved < tolerance * spread:
            break
    return (mean_D + center_D).to(x_ND.dtype)
