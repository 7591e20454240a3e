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
}


def local_block_bootstrap(random, clean_TN, shape, block=32, near=0.1):
    """Replays of clean runs: the course of one of them, and blocks of what is left beside it, each from the
    same time of a run give or take a share `near` (Paparoditis and Politis 2002).

    clean_TN: values of N clean runs, which differ in their course.
    """
    length, runs = clean_TN.shape
    width = max(5, length // 20)
    kernel_W = np.ones(width) / width
    padded_TN = np.pad(clean_TN, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    course_TN = np.stack([np.convolve(one_T, kernel_W, "valid") for one_T in padded_TN.T], axis=1)
    rest_TN = clean_TN - course_TN
    made_TN = np.empty(shape)
    for n in range(shape[1]):
        steps_T = np.minimum(np.arange(shape[0]), length - 1)
        made_TN[:, n] = course_TN[steps_T, random.integers(runs)]
        for start in range(0, shape[0], block):
            size = min(block, shape[0] - start)
            middle = min(start, length - 1) + int(
                random.integers(-int(near * length), int(near * length) + 1)
            )
            begin = int(np.clip(middle, 0, max(0, length - size)))
            made_TN[start : start + size, n] += rest_TN[begin : begin + size, random.integers(runs)]
    return made_TN
