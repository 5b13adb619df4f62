"""From a step to a row: what each output is made of, once the network's prediction is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastsample import predictions, row
from fastsample.path import Array, Level
from fastsample.solvers.step import Mix, Step

Combo = dict[str | int, float]
"""Weights by source: ``"x"`` the state, ``"e"`` the network's output, ``"D"`` the prediction of the row, j > 0 the
history, ``"xi"`` the noise, ``"past"`` that of the call before, any other string a kept tensor."""

D: Combo = {"D": 1.0}


@dataclass(frozen=True)
class Network:
    """How raw outputs become x0_hat, eps_hat and v_hat; ``rates``: d alpha/dt, d sigma/dt at ``levels``, for general
    flow."""

    prediction: str
    scaling: str = "none"
    sigma_data: float = 0.5
    rates: Array | None = None
    levels: Sequence[Level] = ()

    def kappa(self, at: Level) -> float:
        """Factor of the network's input."""
        return predictions.input_scale(self.scaling, at.alpha, at.sigma, self.sigma_data)

    def convert(self, form: str, step: Step) -> Combo:
        """``form`` (``"x0"``, ``"eps"``, ``"v"`` or ``"raw"``) of the step's call, made of x and e."""
        if form == "raw" or (form == self.prediction == "v" and self.scaling == "none"):
            return {"x": 0.0, "e": 1.0}
        at = step.at
        if form == "v":
            x0, eps = self.convert("x0", step), self.convert("eps", step)
            return {source: at.alpha * eps[source] - at.sigma * x0[source] for source in x0}
        to = predictions.to_x0 if form == "x0" else predictions.to_eps
        rates = self._rates(step) if self.prediction == "flow" else None
        p, q = to(self.prediction, at.alpha, at.sigma, kappa=self.kappa(at), sigma_data=self.sigma_data, rates=rates)
        return {"x": p, "e": q}

    def _rates(self, step: Step) -> tuple[float, float] | None:
        if self.rates is None:
            return None
        for i in (step.index, *range(len(self.levels))):
            if not self.levels or self.levels[i][:2] == step.at[:2]:
                return float(self.rates[i, 0]), float(self.rates[i, 1])
        raise ValueError(
            f"prediction: what a flow network means is known at the levels of the path, but this solver asks at "
            f"{step.at} too; allowed are all other predictions"
        )


@dataclass(frozen=True)
class Outputs:
    """What a row computes: ``y`` its prediction before the limits, and what it can write: the new state ``x``, the
    history quantity ``kept``, the preview ``x0``, and the kept tensors by name."""

    y: Combo
    x: Combo
    kept: Combo
    x0: Combo
    keep: dict[str, Combo]


def express(network: Network, step: Step, limited: bool, kept: bool, preview: bool) -> Outputs:
    """The outputs of a step.  Without limits and history the prediction is not formed and everything collapses into
    the weights of x and e."""
    used = bool(step.b[0]) or any(mix.get(0) for mix in step.keep.values())
    y: Combo = {}
    x0: Combo = {}
    quantity: Combo = {}
    if limited:
        if step.form == "raw":
            raise ValueError("clip: this solver combines raw outputs of the network, whose x0_hat cannot be limited")
        y, x0, quantity = _denoised(network, step), D, D
        if step.form != "x0":  # eps_hat or v_hat that belongs to the limited x0_hat
            if step.at.sigma == 0.0:
                raise ValueError("clip: a limited x0_hat says nothing about eps where sigma = 0")
            quantity = {"x": 1.0 / step.at.sigma, "D": -step.at.alpha / step.at.sigma}
        if step.form == "v":
            quantity = {source: step.at.alpha * weight for source, weight in quantity.items()}
            quantity["D"] -= step.at.sigma
    else:
        if preview or (step.form == "x0" and (used or kept)):
            x0 = _denoised(network, step)
        if used or kept:
            quantity = x0 if step.form == "x0" else _prediction(network, step)
        if kept:  # through the D of the row
            y, quantity = quantity, D
            if step.form == "x0":
                x0 = D
    return Outputs(
        y=y,
        x=_resolve(network, step, step.mix, quantity),
        kept=quantity,
        x0=x0,
        keep={name: _resolve(network, step, mix, quantity) for name, mix in step.keep.items()},
    )


def _prediction(network: Network, step: Step) -> Combo:
    """D without limits."""
    plain = network.convert(step.form, step)
    return plain if step.d is None else _resolve(network, step, step.d, plain)


def _denoised(network: Network, step: Step) -> Combo:
    """x0_hat without limits: that of the network, or the one that belongs to a mixed D."""
    if step.d is None or step.form == "raw":
        return network.convert("x0", step)
    made, (alpha, sigma, _) = _prediction(network, step), step.at
    if step.form == "x0":
        return made
    if step.form == "eps" and alpha == 0.0:
        raise ValueError("clip, denoised: eps says nothing about x0 where alpha = 0")
    x, d = (1.0, -sigma) if step.form == "eps" else (alpha, -sigma)
    total = alpha if step.form == "eps" else alpha * alpha + sigma * sigma
    combo = {source: d / total * weight for source, weight in made.items()}
    combo["x"] = combo.get("x", 0.0) + x / total
    return combo


def _resolve(network: Network, step: Step, mix: Mix, quantity: Combo) -> Combo:
    total: Combo = {}
    for source, weight in mix.items():
        if weight == 0.0:
            continue
        parts: Combo = {source: 1.0}
        if source == 0:
            parts = quantity
        elif source == "eps":
            parts = network.convert("eps", step)
        for part, share in parts.items():
            total[part] = total.get(part, 0.0) + weight * share
    return total


def predict(values: Array, combo: Combo, columns: Mapping[str | int, Sequence[tuple[int, float]]]) -> None:
    """Write what D is made of into a row; ``columns``: source -> its columns, each with the share of the weight."""
    for source, weight in combo.items():
        for column, share in columns[source]:
            values[row.p(column)] += weight * share


def write(
    values: Array,
    output: int,
    combo: Combo,
    columns: Mapping[str | int, Sequence[tuple[int, float]]],
    factor: float = 1.0,
) -> None:
    """Write one output, ``factor`` times a combination, into a row.  The noise is noise 0 of the row, that of the call
    before, made again, is noise 1."""
    for source, weight in combo.items():
        if source == "D":
            values[row.w_d(output)] += factor * weight
        elif source == "xi":
            values[row.g(output, 0)] += factor * weight
        elif source == "past":
            values[row.g(output, 1)] += factor * weight
        else:
            for column, share in columns[source]:
                values[row.w(output, column)] += factor * weight * share
