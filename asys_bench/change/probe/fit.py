"""Fits of linear probes to the rows of a window: logistic for classes, ridge for numbers. Pure functions.

Both minimise the weighted loss of the rows plus l2 / 2 |beta|^2 of features scaled to unit variance, as
scikit-learn's `LogisticRegression(C=1 / l2)` and `Ridge(alpha=l2)` do on scaled features. They begin where
the last fit of the same probe ended, and take their steps in the basis of `whitening` where there is one:
columns that say nearly the same take three times as many passes without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Flat = np.ndarray[tuple[int], np.dtype[np.float64]]
MOST_PASSES = 200
"""Of a fit over its rows."""
TOLERANCE, LEAST_GAIN = 1e-4, 1e-6
"""A fit ends where no gradient per row is larger, or a pass lowers the loss by a smaller share. A tenth and a
thousandth of these took 1.8 times the passes and moved held-out AUC by 0.0001."""
MOST_WHITENED = 512
"""Columns: their products with each other are the work of D / 2 passes."""
_LEAST_SCALE, _RIDGE = 1e-6, 1e-6


@dataclass(frozen=True)
class Dense:
    """Activations float32[N, D]."""

    x_ND: torch.Tensor

    @property
    def width(self) -> int:
        return self.x_ND.shape[1]

    def moments(self, weight_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean and standard deviation of each column."""
        share_N = weight_N / weight_N.sum()
        first_D = self.x_ND[0]  # so that a large offset does not cost the digits
        shifted_ND = self.x_ND - first_D
        mean_D = share_N @ shifted_ND
        spread_D = share_N @ shifted_ND.square() - mean_D.square()
        return first_D + mean_D, spread_D.clamp(min=0).sqrt()

    def times(self, beta_DC: torch.Tensor) -> torch.Tensor:
        # Column by column: a product with 3 columns takes 12 times as long as one with a vector.
        return torch.stack([self.x_ND @ beta_D for beta_D in beta_DC.T], dim=1)

    def turned(self, rest_NC: torch.Tensor) -> torch.Tensor:
        """X^T rest, [D, C]."""
        return torch.stack([self.x_ND.T @ rest_N for rest_N in rest_NC.T.contiguous()], dim=1)

    def some(self, rows: torch.Tensor) -> Dense:
        return Dense(self.x_ND[rows])


@dataclass(frozen=True)
class Sparse:
    """The largest features of each row: value_NK at index_NK of `width`; zeros fill a row up."""

    index_NK: torch.Tensor
    value_NK: torch.Tensor
    width: int

    def moments(self, weight_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros: centring would fill the rows; and the root of the mean square."""
        share_NK = (weight_N / weight_N.sum())[:, None] * self.value_NK.square()
        square_D = torch.zeros(self.width).index_add_(
            0, self.index_NK.flatten(), share_NK.flatten()
        )
        return torch.zeros(self.width), square_D.sqrt()

    def times(self, beta_DC: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [(beta_D[self.index_NK] * self.value_NK).sum(1) for beta_D in beta_DC.T], dim=1
        )

    def turned(self, rest_NC: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(self.width, rest_NC.shape[1])
        for column, rest_N in enumerate(rest_NC.T):
            parts_NK = self.value_NK * rest_N[:, None]
            found[:, column].index_add_(0, self.index_NK.flatten(), parts_NK.flatten())
        return found

    def some(self, rows: torch.Tensor) -> Sparse:
        return Sparse(self.index_NK[rows], self.value_NK[rows], self.width)


Features = Dense | Sparse


@dataclass(frozen=True)
class Whitening:
    """Columns x = of_basis @ y: those of y are uncorrelated and of unit variance in some rows. [D, D]."""

    of_basis_DD: torch.Tensor
    to_basis_DD: torch.Tensor


def whitening(features: Features, l2: float) -> Whitening | None:
    """Of rows; None where it would take longer than the passes that it saves."""
    if isinstance(features, Sparse) or features.width > MOST_WHITENED:
        return None
    rows = len(features.x_ND)
    mean_D, scale_D = features.moments(torch.ones(rows))
    silent_D = scale_D <= _LEAST_SCALE * mean_D.abs() + torch.finfo(torch.float32).tiny
    unit_D = torch.where(silent_D, torch.zeros(()), 1 / scale_D.clamp(min=1e-30))
    scaled_ND = (features.x_ND - mean_D) * unit_D
    square_DD = (scaled_ND.T @ scaled_ND / rows).double()
    square_DD.diagonal().add_(l2 / rows + _RIDGE)
    lower_DD, failed = torch.linalg.cholesky_ex(square_DD)
    if failed or not torch.isfinite(lower_DD).all():
        return None
    eye_DD = torch.eye(features.width, dtype=torch.float64)
    inverse_DD = torch.linalg.solve_triangular(lower_DD, eye_DD, upper=False)
    return Whitening(
        (inverse_DD * unit_D).T.float().contiguous(), (lower_DD.T * scale_D).float().contiguous()
    )


@dataclass(frozen=True)
class Linear:
    """x @ weight.T + bias of rows as they are; weight float32[C, D], bias float32[C]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def of(self, features: Features) -> torch.Tensor:
        return features.times(self.weight.T) + self.bias


def fit_classes(
    features: Features,
    class_N: torch.Tensor,
    weight_N: torch.Tensor,
    classes: int,
    l2: float,
    start: Linear | None = None,
    basis: Whitening | None = None,
) -> Linear:
    """Logistic regression: one row of weights for two classes (of the second), else one per class.

    class_N: int64 in 0 .. classes - 1.
    """
    outputs = 1 if classes == 2 else classes
    target_NC = torch.nn.functional.one_hot(class_N, classes).float()
    if classes == 2:
        target_NC = target_NC[:, 1:]

    def loss_of(logits_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if classes == 2:
            loss_N = torch.nn.functional.softplus(logits_NC[:, 0]) - (logits_NC * target_NC)[:, 0]
            return loss_N, logits_NC.sigmoid() - target_NC
        log_NC = logits_NC.log_softmax(1)
        return -(log_NC * target_NC).sum(1), log_NC.exp() - target_NC

    return _fit(features, weight_N, outputs, l2, start, basis, loss_of)


def fit_numbers(
    features: Features,
    value_N: torch.Tensor,
    weight_N: torch.Tensor,
    l2: float,
    start: Linear | None = None,
    basis: Whitening | None = None,
) -> Linear:
    """Ridge regression; the loss of a row is half its squared error over the variance of the values."""
    share_N = weight_N / weight_N.sum()
    mean = share_N @ value_N
    scale = (share_N @ (value_N - mean).square()).sqrt().clamp(min=_LEAST_SCALE)
    target_N1 = ((value_N - mean) / scale)[:, None]

    def loss_of(found_N1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rest_N1 = found_N1 - target_N1
        return 0.5 * rest_N1[:, 0].square(), rest_N1

    if start is not None:
        start = Linear(start.weight / scale, (start.bias - mean) / scale)
    found = _fit(features, weight_N, 1, l2, start, basis, loss_of)
    return Linear(found.weight * scale, found.bias * scale + mean)


def _fit(
    features: Features,
    weight_N: torch.Tensor,
    outputs: int,
    l2: float,
    start: Linear | None,
    basis: Whitening | None,
    loss_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> Linear:
    from scipy.optimize import minimize  # here: a host that starts up needs none of it

    mean_D, scale_D = features.moments(weight_N)
    silent_D = scale_D <= _LEAST_SCALE * mean_D.abs() + torch.finfo(torch.float32).tiny
    scale_D = torch.where(silent_D, torch.ones(()), scale_D)
    rows, width = len(weight_N), features.width

    def raw_of(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner_DC = theta[:-1]
        raw_DC = inner_DC / scale_D[:, None] if basis is None else basis.of_basis_DD @ inner_DC
        raw_DC = torch.where(silent_D[:, None], torch.zeros(()), raw_DC)
        return raw_DC, theta[-1] - mean_D @ raw_DC

    def asked(flat: Flat) -> tuple[float, Flat]:
        raw_DC, raw_bias_C = raw_of(torch.from_numpy(flat).float().view(width + 1, outputs))
        loss_N, rest_NC = loss_of(features.times(raw_DC) + raw_bias_C)
        rest_NC = rest_NC * weight_N[:, None]
        sum_C = rest_NC.sum(0)
        beta_DC = raw_DC * scale_D[:, None]
        slope_DC = features.turned(rest_NC) - mean_D[:, None] * sum_C
        slope_DC = slope_DC + l2 * scale_D[:, None] * beta_DC
        slope_DC = torch.where(silent_D[:, None], torch.zeros(()), slope_DC)
        slope_DC = slope_DC / scale_D[:, None] if basis is None else basis.of_basis_DD.T @ slope_DC
        value = float(weight_N.double() @ loss_N.double()) + 0.5 * l2 * float(
            beta_DC.square().sum()
        )
        slope = torch.cat([slope_DC, sum_C[None]]).flatten().double() / rows
        slope_of: Flat = slope.numpy()
        return value / rows, slope_of

    first = torch.zeros(width + 1, outputs, dtype=torch.float64)
    if start is not None and start.weight.shape == (outputs, width):
        raw_DC = torch.where(silent_D[:, None], torch.zeros(()), start.weight.T)
        first[:-1] = raw_DC * scale_D[:, None] if basis is None else basis.to_basis_DD @ raw_DC
        first[-1] = start.bias + mean_D @ start.weight.T
    begin: Flat = first.flatten().numpy()
    found = minimize(
        asked, begin, jac=True, method="L-BFGS-B",
        options={"maxfun": MOST_PASSES, "gtol": TOLERANCE, "ftol": LEAST_GAIN, "maxcor": 10},
    )  # fmt: skip
    raw_DC, bias_C = raw_of(torch.from_numpy(np.asarray(found.x)).float().view(width + 1, outputs))
    return Linear(raw_DC.T.contiguous(), bias_C.clone())
