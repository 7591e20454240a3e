"""Streams without a change, of the kinds that a run's figures are of, and bootstraps of given ones."""

from __future__ import annotations

import numpy as np


def autoregressive(noise_TN, share):
    values_TN = np.zeros_like(noise_TN)
    for t in range(1, len(noise_TN)):
        values_TN[t] = share * values_TN[t - 1] + noise_TN[t]
    return values_TN


def volatile(random, shape):
    """GARCH(1, 1) (Bollerslev 1986): the spread of each value depends on the one before."""
    noise_TN, values_TN = random.standard_normal(shape), np.zeros(shape)
    variance_N = np.ones(shape[1])
    for t in range(shape[0]):
        values_TN[t] = np.sqrt(variance_N) * noise_TN[t]
        variance_N = 0.05 + 0.15 * values_TN[t] ** 2 + 0.8 * variance_N
    return values_TN


def learning(random, shape):
    """Curves that fall exponentially, each at its own pace and from its own height, and whose noise falls
    with them."""
    time_T1 = np.arange(shape[0])[:, None]
    pace_1N = random.uniform(shape[0] / 20, shape[0] / 2, (1, shape[1]))
    left_TN = np.exp(-time_T1 / pace_1N)
    height_1N = random.uniform(5, 100, (1, shape[1]))
    return height_1N * left_TN + random.standard_normal(shape) * (0.2 + left_TN)


def waking(random, shape):
    """Densities of features that are silent for the first third, and then fire more and more often: up to
    2 % of 256 rows, each at its own pace."""
    time_T1 = np.arange(shape[0])[:, None] / shape[0]
    pace_1N = random.uniform(0.05, 0.6, (1, shape[1]))
    rate_TN = 0.02 * (1 - np.exp(-np.maximum(0.0, time_T1 - 1 / 3) / pace_1N))
    return random.binomial(256, rate_TN) / 256


def updated(random, shape):
    """Means of a policy's rows that stay for 4 values, and move with each update: an AR(1) beneath noise."""
    updates = -(-shape[0] // 4)
    level_UN = autoregressive(random.standard_normal((updates, shape[1])), 0.95)
    return np.repeat(level_UN, 4, axis=0)[: shape[0]] + random.standard_normal(shape)


KINDS = {
    "independent": lambda random, shape: random.standard_normal(shape),
    "AR(1) 0.5": lambda random, shape: autoregressive(random.standard_normal(shape), 0.5),
    "AR(1) 0.9": lambda random, shape: autoregressive(random.standard_normal(shape), 0.9),
    "AR(1) 0.99": lambda random, shape: autoregressive(random.standard_normal(shape), 0.99),
    "random walk": lambda random, shape: random.standard_normal(shape).cumsum(0),
    "Student t2": lambda random, shape: random.standard_t(2, shape),
    "Cauchy": lambda random, shape: random.standard_cauchy(shape),
    "lognormal": lambda random, shape: np.exp(1.5 * random.standard_normal(shape)),
    "AR(1) 0.9 of Student t3": lambda random, shape: autoregressive(
        random.standard_t(3, shape), 0.9
    ),
    "random walk of Student t3": lambda random, shape: random.standard_t(3, shape).cumsum(0),
    "learning": learning,
    "GARCH(1,1)": volatile,
    "rare feature": lambda random, shape: random.binomial(256, 0.003, shape) / 256,
    "silent feature": lambda random, shape: np.zeros(shape),
    "policy updates": updated,
}


def local_block_bootstrap(random, clean_TN, shape, block=32, near=0.03):
    """Replays of clean runs: blocks of one of them, each from the same time of that run give or take a share
    `near` (Paparoditis and Politis 2002). Beyond the end of a run blocks are from around its end.

    clean_TN: values of N clean runs.
    """
    length, runs = clean_TN.shape
    reach, made_TN = max(1, int(near * length)), np.empty(shape)
    for n in range(shape[1]):
        one_T = clean_TN[:, random.integers(runs)]
        for start in range(0, shape[0], block):
            size = min(block, shape[0] - start)
            middle = min(start, length - size) + int(random.integers(-reach, reach + 1))
            begin = int(np.clip(middle, 0, length - size))
            made_TN[start : start + size, n] = one_T[begin : begin + size]
    return made_TN
