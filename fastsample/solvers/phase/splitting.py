"""Splitting integrators: the position, the momentum and the noise of a step one after the other.

The reverse SDE is A + B + O, the probability flow A + B: A moves the position, B the momentum, O is an
Ornstein-Uhlenbeck flow.  A word such as ``"OBAB"`` is the order in a step; a letter that comes n times takes 1/n of the
step each time.  Pandey, Rudolph, Mandt 2024, arXiv 2310.07894, sections 4 and 5 and appendix C.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from fastsample.path import Array, Level, Path
from fastsample.solvers.phase.conjugate import conjugate_step, constant_beta, shape_of
from fastsample.solvers.phase.process import PhaseSpace
from fastsample.solvers.phase.stage import Stage
from fastsample.solvers.registry import check_choice, check_range

Part = Callable[[str, float, float, float], tuple[Array, Array]]
"""``(letter, from, to, time told) -> A, E``"""

_SWAP = str.maketrans("AB", "BA")


def word_of(word: str, first: str) -> str:
    """The word with A and B exchanged if the position goes first; raises ``ValueError`` for one that makes no step."""
    check_choice("first", first, ("m", "x"))
    if not isinstance(word, str) or not {"A", "B"} <= set(word) <= set("ABO"):
        raise ValueError(f"word: got {word!r}, allowed are words of A (position), B (momentum) and O (noise) with A, B")
    return word if first == "m" else word.translate(_SWAP)


def split(
    path: Path, process: PhaseSpace, word: str, share: bool, times: str, part: Part, noise: Callable[..., Array]
) -> list[Stage]:
    """Stages of a word; ``part`` makes A and B, ``noise(from, to)`` makes N of O.

    ``share``: a letter that the current eps has not moved yet takes that eps, any other a new call; else every letter
    has a call of its own.  ``times``: what calls after the first of a step are told, its ``"start"`` or ``"end"``.
    """
    check_choice("times", times, ("start", "end"))
    if not isinstance(share, bool):
        raise ValueError(f"share: got {share!r}, allowed are true and false")
    beta = constant_beta(process, word)
    counts = {letter: word.count(letter) for letter in word}
    levels, stages = path.levels(), []
    for i, (start, end) in enumerate(itertools.pairwise(levels)):
        done, moved = dict.fromkeys(counts, 0), ""
        told: Level | None = None
        for letter in word:
            edges = [start.t + (end.t - start.t) * (done[letter] + k) / counts[letter] for k in (0, 1)]
            done[letter] += 1
            if letter == "O":
                decay = 0.5 * beta * (edges[0] - edges[1]) * np.array([process.Gamma, process.nu])
                stages.append(Stage(i, np.diag(np.exp(-decay)), N=noise(edges[0], edges[1])))
                continue
            call = told is None or not share or letter in moved
            if call:
                told, moved = (start if told is None or times == "start" else end), ""
            assert told is not None
            moved += letter
            A, E = part(letter, edges[0], edges[1], told.t)
            stages.append(Stage(i, A, E, at=told if call else None))
    return stages


def euler_parts(process: PhaseSpace, kappa: int) -> Part:
    """A and B by Euler; kappa = 1 for the probability flow, 2 for the SDE."""
    beta, M = process.beta0, process.M

    def part(letter: str, start: float, end: float, t: float) -> tuple[Array, Array]:
        a = 0.5 * beta * (start - end)
        K = process.K(t)
        if letter == "A":
            A = np.array([[1.0 + a * kappa * process.Gamma, -a / M], [0.0, 1.0]])
            return A, -a * kappa * process.Gamma * K * np.array([[1.0], [0.0]])
        A = np.array([[1.0, 0.0], [a, 1.0 + a * kappa * process.nu]])
        return A, -a * kappa * M * process.nu * K * np.array([[0.0], [1.0]])

    return part


def conjugate_parts(process: PhaseSpace, kappa: int, lam: float, kind: str) -> Part:
    """A and B by a conjugate Euler step each: the row of F, GG^T and B that moves the letter's half."""
    beta, shape = process.beta0, shape_of(kind)
    F = process.drift(beta) - (kappa - 1) * 0.5 * beta * np.diag([process.Gamma, process.nu])
    GG = kappa * process.diffusion(beta)
    lam = check_range("lam", lam, -math.inf)

    def part(letter: str, start: float, end: float, t: float) -> tuple[Array, Array]:
        keep = np.array([[1.0], [0.0]] if letter == "A" else [[0.0], [1.0]])
        return conjugate_step(process, start, end, keep * F, keep * GG, keep * (lam * shape))

    return part


def noise_of(process: PhaseSpace, lambda_s: float, window: str) -> Callable[[float, float], Array]:
    """N of O.  ``lambda_s`` changes the noise of the position alone: ``1 - e^{-lambda_s w beta Gamma}``.

    ``window``: w is the ``"step"`` (then lambda_s = 1 is the exact flow) or, as the paper has it, the ``"mean"`` time
    of the step, where lambda_s must shrink like the inverse of the number of steps.
    """
    check_choice("window", window, ("step", "mean"))
    lambda_s, beta = check_range("lambda_s", lambda_s, 0.0), process.beta0

    def noise(start: float, end: float) -> Array:
        w = start - end if window == "step" else 0.5 * (start + end)
        x = math.sqrt(-math.expm1(-lambda_s * w * beta * process.Gamma))
        return np.diag([x, math.sqrt(-math.expm1(-(start - end) * beta * process.nu) * process.M)])

    return noise


def splitting(
    path: Path,
    process: PhaseSpace,
    *,
    word: str,
    first: str,
    share: bool,
    times: str,
    lambda_s: float = 1.0,
    window: str = "step",
) -> list[Stage]:
    """A and B by Euler."""
    kappa = 2 if "O" in word else 1
    part, noise = euler_parts(process, kappa), noise_of(process, lambda_s, window)
    return split(path, process, word_of(word, first), share, times, part, noise)


def conjugate_splitting(
    path: Path,
    process: PhaseSpace,
    *,
    word: str,
    first: str,
    share: bool,
    times: str,
    lam: float,
    kind: str,
    lambda_s: float = 1.0,
    window: str = "step",
) -> list[Stage]:
    """A and B by a conjugate Euler step."""
    kappa = 2 if "O" in word else 1
    part, noise = conjugate_parts(process, kappa, lam, kind), noise_of(process, lambda_s, window)
    return split(path, process, word_of(word, first), share, times, part, noise)
