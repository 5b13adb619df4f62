"""Overdamped kernels for ``dx = -grad U dt + sqrt(2) dB``: Euler, randomized midpoint, Poisson midpoint.

    LMC    x' = x - h g(x) + sqrt(2h) xi
    RLMC   m = x - theta h g(x) + sqrt(2 theta h) xi_0
           x' = x - h g(m) + sqrt(2h) (sqrt(theta) xi_0 + sqrt(1 - theta) xi_1)                theta uniform in [0, 1)
    PLMC   K fine steps of LMC with the gradient g_0 of their start; at random ones of them, the midpoints i, the
           gradient on that cheap path m enters: x' = x - (h/K) [g_0 + weight H_i (g(m) - g_0)] + sqrt(2h/K) xi_i

A window of PLMC is run from midpoint to midpoint: n fine steps with one force are one move with one normal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .moves import Feed, Move, gradient, make_move, mix
from .random_times import Midpoints, Thetas, Window
from .steps import Steps, remembered
from .targets import Target


class Lmc:
    """Langevin Monte Carlo, the unadjusted Langevin algorithm: Roberts and Tweedie 1996; one call per step."""

    slots: tuple[str, ...] = ()
    draws = most = 1

    def __init__(self, target: Target, feed: Feed, steps: Steps) -> None:
        self._target, self._feed, self._steps = target, feed, steps
        self._moves = remembered(self._make)

    def iteration(self, number: int) -> tuple[Move, ...]:
        return self._moves(self._steps(number))

    def _make(self, h: float) -> tuple[Move, ...]:
        feed = self._feed
        x = mix((1.0, {"x": 1.0, "xi0": np.sqrt(2.0 * h)}), (-h, gradient(self._target, "x")))
        return (make_move(feed.at("x"), ("x", "e"), feed.out("x", {"x": x})),)


class Rlmc:
    """Randomized midpoint: Shen and Lee 2019, arXiv 1909.05503; overdamped: He, Balasubramanian, Erdogdu 2020,
    arXiv 2011.03176.  Two calls per step."""

    slots: tuple[str, ...] = ("m",)
    draws = most = 2

    def __init__(self, target: Target, feed: Feed, steps: Steps, thetas: Thetas) -> None:
        self._target, self._feed, self._steps, self._thetas = target, feed, steps, thetas

    def iteration(self, number: int) -> tuple[Move, ...]:
        feed, h, theta = self._feed, self._steps(number), self._thetas(number)
        early, late = np.sqrt(2.0 * h * theta), np.sqrt(2.0 * h * (1.0 - theta))
        m = mix((1.0, {"x": 1.0, "xi0": early}), (-theta * h, gradient(self._target, "x")))
        x = mix((1.0, {"x": 1.0, "xi0": early, "xi1": late}), (-h, gradient(self._target, "m")))
        return (
            make_move(feed.at("x"), ("x", "e"), feed.out("m", {"m": m})),
            make_move(feed.at("m"), ("x", "m", "e"), feed.out("x", {"x": x})),
        )


class Plmc:
    """Poisson midpoint: Kandasamy and Nagaraj 2024, arXiv 2405.17068; Srinivasan, Nagaraj et al. 2025,
    arXiv 2506.07614.  A step is a window of ``size`` fine steps; one call and one per midpoint."""

    slots: tuple[str, ...] = ("g", "m")

    def __init__(
        self, target: Target, feed: Feed, steps: Steps, size: int, midpoints: tuple[Midpoints, int, float]
    ) -> None:
        self._target, self._feed, self._steps, self._size = target, feed, steps, size
        self._midpoints, most, self._weight = midpoints
        self.draws = self.most = 1 + most

    def iteration(self, number: int) -> list[Move]:
        window, h = Window(self._midpoints(number), self._size), self._steps(number) / self._size
        return [self._move(window, h, number) for number in range(window.calls)]

    def _move(self, window: Window, h: float, number: int) -> Move:
        """Move ``number``: the cheap path ahead, and from the second one on the correction that lies behind."""
        feed, last = self._feed, number + 1 == window.calls
        time = window.length(number) * h
        noise = {"xi0": np.sqrt(2.0 * time)}
        if number == 0:
            force: dict[str, Any] = gradient(self._target, "x")
            x = mix((1.0, {"x": 1.0, **noise}), (-time, force))
            outs = {"x": x} if last else {"x": x, "g": force}
            return make_move(feed.at("x"), ("x", "e"), feed.out("x", outs))
        point = "x" if number == 1 else "m"  # until the first correction both paths are one
        force = {"g": 1.0}
        change = mix((1.0, gradient(self._target, point)), (-1.0, force))
        weight = self._weight * h * window.live(number)
        outs = {"x": mix((1.0, {"x": 1.0, **noise}), (-time, force), (-weight, change))}
        if not last:
            outs["m"] = mix((1.0, {point: 1.0, **noise}), (-time, force))
        fed = feed.out("x" if last else "m", outs)
        return make_move(feed.at(point), ("x", "m", "g", "e"), fed, number)
