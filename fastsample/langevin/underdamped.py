"""Underdamped kernels for ``dx = v dt, dv = -gamma v dt - grad U dt + sqrt(2 gamma) dB``, exact but for the force.

    ULD    the move of ou.py with the force frozen at its start
    RLMC   the force of the whole step is that at a uniformly random time of it; with h1 = theta h, h2 = h - h1, e2 and
           p1(h2) of a move of length h2, zeta the noises of the two parts:
           m = x + p1(h1) v - p2(h1) g(x) + zeta_x1
           x' = x + p1(h) v - h p1(h2) g(m) + zeta_x1 + p1(h2) zeta_v1 + zeta_x2
           v' = e(h) v - h e2 g(m) + e2 zeta_v1 + zeta_v2
    PLMC   K fine moves of ULD with the force of their start, and corrections at random ones of them

What x and v need of the first part of a RLMC step is written with m, so that four normals fit into rows of two.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from .moves import Combo, Feed, Move, Weight, gradient, make_move, mix
from .ou import Move as Flight
from .ou import move as flight
from .random_times import Midpoints, Thetas, Window
from .steps import Steps, remembered
from .targets import Target


def flown(x: str, v: str, force: Combo, part: Flight) -> tuple[dict[str, Weight], dict[str, Weight]]:
    """Position and velocity after a move under a constant force."""
    new_x = mix((1.0, {x: 1.0, v: part.p1, "xi0": part.l_1, "xi1": part.l_2}), (-part.p2, force))
    return new_x, mix((1.0, {v: part.e, "xi0": part.l_v}), (-part.p1, force))


class Uld:
    """Underdamped Langevin with the force frozen over a step: Cheng et al. 2018, arXiv 1707.03663; one call."""

    slots: tuple[str, ...] = ("v",)
    draws, most = 2, 1

    def __init__(self, target: Target, feed: Feed, steps: Steps, friction: float) -> None:
        self._target, self._feed, self._steps, self._friction = target, feed, steps, friction
        self._moves = remembered(self._make)

    def iteration(self, number: int) -> tuple[Move, ...]:
        return self._moves(self._steps(number))

    def _make(self, h: float) -> tuple[Move, ...]:
        x, v = flown("x", "v", gradient(self._target, "x"), flight(self._friction, h))
        feed = self._feed
        return (make_move(feed.at("x"), ("x", "v", "e"), feed.out("x", {"x": x, "v": v})),)


class UnderdampedRlmc:
    """Randomized midpoint: Shen and Lee 2019, arXiv 1909.05503 (there gamma = 2); two calls per step."""

    slots: tuple[str, ...] = ("v", "m")
    draws, most = 4, 3

    def __init__(self, target: Target, feed: Feed, steps: Steps, friction: float, thetas: Thetas) -> None:
        self._target, self._feed, self._steps, self._thetas = target, feed, steps, thetas
        self._friction = friction

    def iteration(self, number: int) -> list[Move]:
        feed, h, theta = self._feed, self._steps(number), self._thetas(number)
        early, late = flight(self._friction, theta * h), flight(self._friction, (1.0 - theta) * h)
        m, _ = flown("x", "v", gradient(self._target, "x"), early)
        # the whole step without its force, of which the second noises are still missing
        x, v = flown("x", "v", {}, early)
        x = mix((1.0, x), (late.p1, v))
        v = mix((late.e, v))
        if feed.apart:  # four outputs, one more than a row has
            first = [
                make_move(feed.at("x"), ("x", "v", "e"), feed.out("m", {"m": m})),
                make_move(None, ("x", "v"), {"x": x, "v": v}),
            ]
        else:
            first = [make_move("x", ("x", "v", "e"), {"m": m, "x": x, "v": v})]
        force = gradient(self._target, "m")
        end_x = mix((1.0, {"x": 1.0, "xi0": late.l_1, "xi1": late.l_2}), (-h * late.p1, force))
        end_v = mix((1.0, {"v": 1.0, "xi0": late.l_v}), (-h * late.e, force))
        end = feed.out("x", {"x": end_x, "v": end_v})
        return [*first, make_move(feed.at("m"), ("x", "v", "m", "e"), end, 2)]


class UnderdampedPlmc:
    """Poisson midpoint: Kandasamy and Nagaraj 2024, arXiv 2405.17068; Srinivasan, Nagaraj et al. 2025,
    arXiv 2506.07614.  A step is a window of ``size`` fine moves; one call and one per midpoint."""

    slots: tuple[str, ...] = ("v", "g", "m", "w")  # w: velocity of the cheap path

    def __init__(
        self,
        target: Target,
        feed: Feed,
        steps: Steps,
        friction: float,
        size: int,
        midpoints: tuple[Midpoints, int, float],
    ) -> None:
        self._target, self._feed, self._steps, self._size = target, feed, steps, size
        self._midpoints, most, self._weight = midpoints
        self.draws, self.most = 2 * (1 + most), 2 * (1 + most)
        self._flights = remembered(lambda h: flight(friction, h * np.arange(size + 1.0)))

    def iteration(self, number: int) -> list[Move]:
        window = Window(self._midpoints(number), self._size)
        flights = self._flights(self._steps(number) / self._size)
        moves = self._start(window, flights)
        for number in range(1, window.calls):
            moves += self._correct(window, flights, number)
        return moves

    def _start(self, window: Window, flights: Flight) -> list[Move]:
        feed, part = self._feed, _taken(flights, window.length(0))
        force: dict[str, Any] = gradient(self._target, "x")
        kept = [] if window.calls == 1 else [make_move(feed.at("x"), ("x", "e"), {"g": force})]
        if kept and feed.apart:  # four outputs, one more than a row has
            x, v = flown("x", "v", {"g": 1.0}, part)
            return [*kept, make_move(None, ("x", "v", "g"), feed.out("x", {"x": x, "v": v}))]
        x, v = flown("x", "v", force, part)
        outs = {"x": x, "v": v, **({"g": force} if kept else {})}
        return [make_move(feed.at("x"), ("x", "v", "e"), feed.out("x", outs))]

    def _correct(self, window: Window, flights: Flight, number: int) -> list[Move]:
        feed, last, length = self._feed, number + 1 == window.calls, window.length(number)
        part, rest = _taken(flights, length), _taken(flights, np.maximum(length - 1, 0))
        x, v = flown("x", "v", {"g": 1.0}, part)
        point, speed = ("x", "v") if number == 1 else ("m", "w")  # until the first correction both paths are one
        change = mix((1.0, gradient(self._target, point)), (-1.0, {"g": 1.0}))
        weight = self._weight * window.live(number)
        one = _taken(flights, 1)
        x = mix((1.0, x), (-weight * (one.p2 + rest.p1 * one.p1), change))
        v = mix((1.0, v), (-weight * rest.e * one.p1, change))
        terms, ask, draw = ("x", "v", "m", "w", "g", "e"), feed.at(point), 2 * number
        if last:
            return [make_move(ask, terms, feed.out("x", {"x": x, "v": v}), draw)]
        m, w = flown(point, speed, {"g": 1.0}, part)
        cheap = feed.out("m", {"m": m, "w": w})
        refined: dict[str, Combo] = {"x": x, "v": v}
        if number == 1:  # m starts from x, which must still be there
            return [make_move(ask, terms, cheap, draw), make_move(None, terms, refined, draw)]
        return [make_move(ask, terms, refined, draw), make_move(None, terms, cheap, draw)]


def _taken(flights: Flight, count: Any) -> Flight:
    """Moves of some numbers of fine moves, out of a table of all lengths."""
    return Flight(flights.gamma, *(getattr(flights, f.name)[count] for f in fields(flights)[1:]))
