"""DualFast: any solver with the current noise prediction mixed with an older, noisier one.

    eps~_i = eps_i + c_i (eps_i - eps_older)

costs no call, only a kept tensor.  The authors aim it at the approximation error of the network.  On an exact network,
which has none, it works as extrapolation: DDIM with the previous call as the older one and c_i = h_i / (2 h_{i-1}) *is*
the second-order multistep on eps_hat, while second-order solvers on x0_hat get worse.  So it is a knob to try, off
(c = 0) by default.  The formula is reconstructed, no program of the authors is known; neither is their choice of c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastsample.path import Path
from fastsample.solvers.registry import Solver, add, check_choice, check_range, complete, find
from fastsample.solvers.step import Mix, Step

OLDER = "older"  # slot of eps_older
OWN: dict[str, Any] = {"base": "ddim", "c": 0.0, "shape": "const", "anchor": "previous", "mix": "first"}


def dualfast(
    path: Path, *, base: str, c: float | Sequence[float], shape: str, anchor: str, mix: str, **options: Any
) -> list[Step]:
    """The rows of ``base`` with mixed predictions; the first call is never mixed.

    Args:
        base: name of a solver; its own options are options here too.  Every call counts as a step.
        c: a number, or one per call (or level: a callable).  > 0 extrapolates from the older prediction.
        shape: of a number c over N calls: "const", "increasing" (c i / (N - 1)) or "decreasing" (c (1 - i / N)).
        anchor: the older prediction: of the "previous" call or of the "first".
        mix: "first": the leading term of each row alone is mixed (its weight is the sum over all predictions in the
            row), differences of predictions stay raw; "all": the history holds mixed predictions.  Limits of x0_hat
            act after the mix in "all", before it in "first".
    """
    check_choice("shape", shape, ("const", "increasing", "decreasing"))
    check_choice("anchor", anchor, ("previous", "first"))
    check_choice("mix", mix, ("first", "all"))
    if options.get("anchored"):
        raise ValueError("anchored: must be False in a base of 'dualfast', which changes rows that hold one state")
    entry = find(base)
    if entry.model:
        raise ValueError(f"base: {base!r} needs a network of its own kind ({entry.model}), whose eps_hat is not mixed")
    steps: list[Step] = entry.steps(path, **complete(entry, options))
    weights = _weights(c, shape, path, steps)
    if not any(weights):
        return steps
    for step in steps:
        if step.form == "raw" or step.d is not None:
            raise ValueError(f"base: {base!r} combines raw outputs or makes its own prediction, which cannot be mixed")
    # eps_hat of the call before is in the history already where that is what the solver keeps
    in_history = mix == "first" and anchor == "previous" and all(step.form == "eps" for step in steps)
    mixed = []
    for i, (step, weight) in enumerate(zip(steps, weights, strict=True)):
        if weight:
            step = _first(step, weight, steps, i, in_history) if mix == "first" else _all(step, weight)
        needed = any(weights[i + 1 : i + 2] if anchor == "previous" else weights[i + 1 :])
        if needed and not in_history and (i == 0 or anchor == "previous"):
            step = replace(step, keep={**step.keep, OLDER: {"eps": 1.0}})
        mixed.append(step)
    return mixed


def _weights(c: Any, shape: str, path: Path, steps: Sequence[Step]) -> list[float]:
    n = len(steps)
    if isinstance(c, (int, float)):
        c = check_range("c", c, -float("inf"))
        rise = {"const": (1.0, 0.0), "increasing": (0.0, 1.0 / max(n - 1, 1)), "decreasing": (1.0, -1.0 / n)}[shape]
        values = [c * (rise[0] + rise[1] * i) for i in range(n)]
    else:
        try:
            values = [float(v) for v in c]
        except (TypeError, ValueError):
            raise ValueError(f"c: got {c!r}, allowed are a number, {n} numbers or a callable of a level") from None
        if len(values) == path.steps + 1 and len(values) != n:
            values = [values[step.index] for step in steps]
        if len(values) != n:
            raise ValueError(f"c: got {len(values)} numbers for {n} network calls")
        values = [check_range("c", v, -float("inf")) for v in values]
    return [0.0, *values[1:]]


def _share(step: Step) -> float:
    """How much D of the step's form moves with its eps_hat."""
    alpha, sigma, _ = step.at
    if step.form == "eps":
        return 1.0
    if alpha == 0.0:
        raise ValueError("base: asks twice at alpha = 0, where a mixed eps_hat gives no x0_hat")
    return -sigma / alpha if step.form == "x0" else alpha + sigma * sigma / alpha


def _first(step: Step, c: float, steps: Sequence[Step], i: int, in_history: bool) -> Step:
    now, older = (0, 1) if in_history else ("eps", OLDER)

    def change(mix: Mix) -> dict[str | int, float]:
        leading = sum(w for j, w in mix.items() if isinstance(j, int) and steps[i - j].form == step.form)
        weight = c * (leading * _share(step) + mix.get("eps", 0.0))
        return _added(mix, {now: weight, older: -weight})

    return _with(step, change(step.mix), {name: change(mix) for name, mix in step.keep.items()})


def _all(step: Step, c: float) -> Step:
    def change(mix: Mix) -> dict[str | int, float]:
        weight = c * mix.get("eps", 0.0)
        return _added(mix, {"eps": weight, OLDER: -weight})

    weight = c * _share(step)
    d: Mix = {0: 1.0 + c, OLDER: -c} if step.form == "eps" else {0: 1.0, "eps": weight, OLDER: -weight}
    step = _with(step, change(step.mix), {name: change(mix) for name, mix in step.keep.items()})
    return replace(step, d=d)


def _added(mix: Mix, more: Mix) -> dict[str | int, float]:
    total = dict(mix)
    for source, weight in more.items():
        if weight:
            total[source] = total.get(source, 0.0) + weight
    return total


def _with(step: Step, mix: Mix, keep: Mapping[str, Mix]) -> Step:
    """The step with another new state and other kept tensors."""
    depth = max((j for j in mix if isinstance(j, int)), default=0)
    return replace(
        step,
        a=mix.get("x", 0.0),
        b=tuple(mix.get(j, 0.0) for j in range(depth + 1)),
        c=mix.get("xi", 0.0),
        raw=mix.get("eps", 0.0),
        saved={name: w for name, w in mix.items() if isinstance(name, str) and name not in ("x", "eps", "xi")},
        keep=keep,
    )


def _base_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    base = find(options["base"])
    if base.name == "dualfast":
        raise ValueError("base: got 'dualfast', allowed is every other solver")
    shared = OWN.keys() & base.options.keys()
    if shared:
        raise ValueError(f"base: {base.name!r} has options of the same name as 'dualfast': {', '.join(shared)}")
    return base.options


add(
    Solver(
        "dualfast",
        dualfast,
        "any solver (base=...) with each eps_hat mixed with an older one",
        "Yu, Luo, Wang, Zhao 2025, arXiv 2506.13058",
        order=1,
        options=OWN,
        more=_base_options,
    )
)
