"""The lives of an SAE's features: resampling ends one and begins another at the same index.

Of each life: its generation, when it began (trainer's step, host step, trained rows), the direction that
it began with, and when its decoder had drifted past cosine `TURNED_COSINE` from there. Beside it, how
strongly each feature fired in training, with the weights that it had then (the sum of its squared
activations: weak firing by chance, which a count would see, hardly counts), over windows of equally many
steps: `WINDOWS` at most, of which pairs are joined when they are full. `change.timeline` tells from
these a feature that the SAE followed while it moved from one that began.

Memory: 2 D + 4 WINDOWS + 40 bytes a feature. A step costs one addition of F counts.
"""

from __future__ import annotations

import torch

from asys_bench.sae.checkpoint.checkpoint_files import (
    MOST_COUNTED,
    StateDict,
    number_of,
    tensor_of,
)

WINDOWS = 64
TURNED_COSINE = 0.5
"""Below it a decoder row shares less than a quarter of its energy with the direction it began with."""
NOT_TURNED = -1
_PER_FEATURE = ("generation", "born_step", "born_host_step", "born_rows", "turned_host_step")


class FeatureLives:
    """F features; the energies are where the SAE is, everything else on the CPU."""

    def __init__(self, W_dec_FD: torch.Tensor) -> None:
        features, device = len(W_dec_FD), W_dec_FD.device
        self.generation_F = torch.zeros(features, dtype=torch.int64)
        """0: since the start; each resampling adds one."""
        self.born_step_F = torch.zeros(features, dtype=torch.int64)
        self.born_host_step_F = torch.zeros(features, dtype=torch.int64)
        self.born_rows_F = torch.zeros(features, dtype=torch.int64)
        """Rows that had been trained on when the life began."""
        self.turned_host_step_F = torch.full((features,), NOT_TURNED, dtype=torch.int64)
        self.birth_FD = torch.zeros(W_dec_FD.shape, dtype=torch.bfloat16)
        self.energy_WF = torch.zeros(WINDOWS, features, device=device)
        self.window_rows_W = torch.zeros(WINDOWS, dtype=torch.int64)
        self.window_step_W = torch.zeros(WINDOWS, dtype=torch.int64)
        """The host step at which each window began."""
        self.steps_per_window, self.steps_in_window, self.windows = 1, 0, 0
        self.rows = 0
        self.host_step = 0
        """The newest host step of any row trained on."""

    @torch.no_grad()
    def start(self, W_dec_FD: torch.Tensor) -> None:
        """The SAE begins with these directions."""
        self.birth_FD.copy_(W_dec_FD)

    @torch.no_grad()
    def begin(self, index_M: torch.Tensor, W_dec_FD: torch.Tensor, step: int) -> None:
        """These features were resampled in step `step`, and now write W_dec[index]."""
        index_M, began_MD = index_M.cpu(), W_dec_FD[index_M]
        self.generation_F[index_M] += 1
        self.born_step_F[index_M] = step
        self.born_host_step_F[index_M] = self.host_step
        self.born_rows_F[index_M] = self.rows
        self.turned_host_step_F[index_M] = NOT_TURNED
        self.birth_FD[index_M] = began_MD.to("cpu", torch.bfloat16)

    @torch.no_grad()
    def observe(self, energy_F: torch.Tensor, rows: int, host_step: int) -> None:
        """A step was taken on `rows` rows, the newest of host step `host_step`.

        energy_F: the sum of each feature's squared activations.
        """
        self.host_step = max(self.host_step, min(host_step, MOST_COUNTED))
        self.rows += rows
        if self.windows == 0 or self.steps_in_window >= self.steps_per_window:
            self._open_window()
        at = self.windows - 1
        self.energy_WF[at] += energy_F.nan_to_num(0.0, 0.0, 0.0)
        self.window_rows_W[at] += rows
        self.steps_in_window += 1

    def _open_window(self) -> None:
        if self.windows == WINDOWS:
            half = WINDOWS // 2
            self.energy_WF[:half] = self.energy_WF[0::2] + self.energy_WF[1::2]
            self.window_rows_W[:half] = self.window_rows_W[0::2] + self.window_rows_W[1::2]
            self.window_step_W[:half] = self.window_step_W[0::2].clone()
            for table in (self.energy_WF, self.window_rows_W, self.window_step_W):
                table[half:] = 0
            self.windows, self.steps_per_window = half, 2 * self.steps_per_window
        self.window_step_W[self.windows] = self.host_step
        self.windows += 1
        self.steps_in_window = 0

    @torch.no_grad()
    def look_for_turned(self, W_dec_FD: torch.Tensor) -> torch.Tensor:
        """Mark the features whose decoder is past `TURNED_COSINE`; returns float32[F], the cosine of each
        one's decoder with the direction that its life began with."""
        cosine_F = torch.nn.functional.cosine_similarity(
            W_dec_FD.to("cpu", torch.float32), self.birth_FD.float(), dim=1
        )
        turned_F = (cosine_F < TURNED_COSINE) & (self.turned_host_step_F == NOT_TURNED)
        self.turned_host_step_F[turned_F] = self.host_step
        return cosine_F

    @property
    def begun(self) -> int:
        """Lives so far, those of the start included."""
        return len(self.generation_F) + int(self.generation_F.sum())

    @property
    def turned(self) -> int:
        return int((self.turned_host_step_F != NOT_TURNED).sum())

    def share_younger_than(self, rows: int) -> float:
        """Share of the features whose life began within the last `rows` trained rows."""
        return float((self.rows - self.born_rows_F < rows).float().mean())

    def state_dict(self) -> StateDict:
        """All but the directions, which take as much as half the decoder."""
        state: StateDict = {name: getattr(self, f"{name}_F") for name in _PER_FEATURE}
        return state | {
            "energy": self.energy_WF,
            "window_rows": self.window_rows_W,
            "window_step": self.window_step_W,
            "steps_per_window": self.steps_per_window,
            "steps_in_window": self.steps_in_window,
            "windows": self.windows,
            "rows": min(self.rows, MOST_COUNTED),
            "host_step": self.host_step,
        }

    @torch.no_grad()
    def load_state_dict(self, state: StateDict, W_dec_FD: torch.Tensor) -> None:
        """Without directions, lives that are not those of now begin with W_dec_FD: after a rollback.
        An earlier version's state is empty: its features are then of generation 0.

        Raises:
            ValueError: an entry is missing, or no lives of an SAE of this size are like that.
        """
        if not state:
            vars(self).update(vars(FeatureLives(W_dec_FD)))
            self.start(W_dec_FD)
            return
        other_F = tensor_of(state, "generation") != self.generation_F
        for name in _PER_FEATURE:
            value_F = tensor_of(state, name)
            if bool((value_F < (NOT_TURNED if name == "turned_host_step" else 0)).any()):
                raise ValueError(f"lives: {name} is negative")
            getattr(self, f"{name}_F").copy_(value_F)
        windows = int(number_of(state, "windows"))
        width, inside = (int(number_of(state, f"steps_{n}_window")) for n in ("per", "in"))
        if not (0 <= windows <= WINDOWS and width >= 1 and 0 <= inside <= width):
            raise ValueError(f"lives: {windows} windows of {width} steps, {inside} in the last")
        for name, own in (
            ("energy", self.energy_WF),
            ("window_rows", self.window_rows_W),
            ("window_step", self.window_step_W),
        ):
            table = tensor_of(state, name)
            if bool((table < 0).any()):
                raise ValueError(f"lives: {name} is negative")
            own.copy_(table)
        if "birth" in state:
            self.birth_FD.copy_(tensor_of(state, "birth"))
        else:
            self.birth_FD[other_F] = W_dec_FD.to("cpu", torch.bfloat16)[other_F]
        self.windows, self.steps_per_window, self.steps_in_window = windows, width, inside
        self.rows, self.host_step = (int(number_of(state, n)) for n in ("rows", "host_step"))
