"""A law of loss against cost, loss = floor + scale x cost^-power, by which a larger budget's loss is foretold, with its interval.

The form is that of scaling laws of language models (arXiv 2001.08361; with a floor, 2203.15556). It is fitted to single runs by
least squares; the interval is that of one more run (95 %, Student's t, the law linear in its parameters near the best ones). It
is held to account by leaving out the largest budget. Losses only: no score follows such a law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import stdtrit

LEAST_BUDGETS = 4  # that a law is fitted to
SAME = 1.2  # times a cost, up to which another is of the same budget
REACH = 3.0  # times the largest budget, beyond which nothing is foretold
POWERS = np.geomspace(0.02, 3.0, 300)
STEP = float(POWERS[1] / POWERS[0])


@dataclass(frozen=True)
class Forecast:
    cost: float  # in the unit of the law's costs
    loss: float
    half_width: float | None  # of the 95 % interval; None where there are no more runs than parameters


@dataclass(frozen=True)
class Law:
    """`floor` + `scale` x (cost / `unit`)^-`power`."""

    floor: float
    scale: float
    power: float
    unit: float  # the costs' geometric mean
    least: float  # the smallest cost that it was fitted to
    most: float  # and the largest
    runs: int
    variance: float | None  # of one run about the law
    spread: NDArray[np.float64]  # the inverse of J'J, of the parameters that are free

    def at(self, cost: float) -> Forecast:
        ratio = cost / self.unit
        loss = self.floor + self.scale * ratio**-self.power
        if self.variance is None:
            return Forecast(cost, loss, None)
        gradient = _jacobian(np.array([ratio]), self.scale, self.power)[0, -len(self.spread) :]
        variance = self.variance * (1 + gradient @ self.spread @ gradient)
        return Forecast(cost, loss, float(stdtrit(self.runs - len(self.spread), 0.975)) * math.sqrt(variance))


@dataclass(frozen=True)
class BackTest:
    """The largest budget as the law of the smaller ones has it, and as it was measured."""

    foretold: Forecast
    measured: float  # the mean of its runs

    @property
    def inside(self) -> bool | None:
        """Whether the measured loss is in the interval; None where there is none."""
        half = self.foretold.half_width
        return None if half is None else abs(self.measured - self.foretold.loss) <= half


def fit(costs: Sequence[float], losses: Sequence[float]) -> Law:
    """The law of these runs, a cost and a loss each; floor, scale and power are at least 0."""
    xs, ys = np.asarray(costs, np.float64), np.asarray(losses, np.float64)
    unit = float(np.exp(np.log(xs).mean()))
    ratios = xs / unit
    power = _best(ratios, ys, POWERS)
    power = _best(ratios, ys, power * np.linspace(1 / STEP, STEP, 101))
    floor, scale = _linear(ratios, ys, power)[0]
    jacobian = _jacobian(ratios, scale, power)
    if floor == 0:  # it stands at its bound, and is no parameter
        jacobian = jacobian[:, 1:]
    free = len(ys) - jacobian.shape[1]
    residuals = ys - floor - scale * ratios**-power
    variance = float(residuals @ residuals) / free if free > 0 else None
    spread = np.linalg.pinv(jacobian.T @ jacobian)
    return Law(float(floor), float(scale), power, unit, float(xs.min()), float(xs.max()), len(ys), variance, spread)


def _linear(
    ratios: NDArray[np.float64], losses: NDArray[np.float64], power: float
) -> tuple[NDArray[np.float64], float]:
    """The best floor and scale at this power, a linear problem, and the residuals' norm."""
    return nnls(np.stack([np.ones_like(ratios), ratios**-power], axis=1), losses)


def _best(ratios: NDArray[np.float64], losses: NDArray[np.float64], powers: NDArray[np.float64]) -> float:
    return float(min(powers, key=lambda power: _linear(ratios, losses, power)[1]))


def _jacobian(ratios: NDArray[np.float64], scale: float, power: float) -> NDArray[np.float64]:
    """(runs, 3): of floor, scale and power."""
    decay = ratios**-power
    return np.stack([np.ones_like(ratios), decay, -scale * decay * np.log(ratios)], axis=1)


def count_budgets(costs: Sequence[float]) -> int:
    found: list[float] = []
    for cost in sorted(costs):
        if not found or cost > found[-1] * SAME:
            found.append(cost)
    return len(found)


def back_test(costs: Sequence[float], losses: Sequence[float]) -> BackTest:
    """How the law of all but the largest budget foretells that one."""
    largest = [cost > max(costs) / SAME for cost in costs]
    kept = [(c, y) for c, y, last in zip(costs, losses, largest, strict=True) if not last]
    out = [(c, y) for c, y, last in zip(costs, losses, largest, strict=True) if last]
    cost = math.fsum(c for c, _ in out) / len(out)
    return BackTest(fit(*zip(*kept, strict=True)).at(cost), math.fsum(y for _, y in out) / len(out))
