"""What a network predicts, as ``P x + Q e``: the conversions of raw output ``e`` to x0-hat and to eps-hat.

Everything is linear, so a prediction is two numbers per level.  ``kappa`` is the factor by which the network's input
is scaled (``x_in = kappa x``): predictions that mix x0 and eps (v) then speak of the scaled state.

    eps    the noise of x = alpha x0 + sigma eps
    x0     the clean data
    v      alpha eps - sigma x0                              Salimans and Ho 2022, arXiv 2202.00512, appendix D
    score  grad log p(x) = -eps / sigma
    flow   alpha' x0 + sigma' eps, by default eps - x0       Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022
    edm    raw F of x0 = c_skip x/alpha + c_out F            Karras et al. 2022, arXiv 2206.00364, equation 7
"""

from __future__ import annotations

import math

PREDICTIONS = ("eps", "x0", "v", "score", "flow", "edm")
INPUT_SCALINGS = ("none", "vp", "edm")


def input_scale(scaling: str, alpha: float, sigma: float, sigma_data: float = 0.5) -> float:
    """``kappa``: the network is fed ``kappa x``.

    ``"vp"``: unit alpha^2 + sigma^2; ``"edm"``: c_in / alpha with c_in = 1/sqrt(rho^2 + sigma_data^2).
    """
    if scaling == "none":
        return 1.0
    if scaling == "vp":
        return 1.0 / math.hypot(alpha, sigma)
    if scaling == "edm":
        return 1.0 / math.hypot(sigma, alpha * sigma_data)
    raise ValueError(f"input_scaling: got {scaling!r}, allowed are {', '.join(INPUT_SCALINGS)}")


def to_x0(
    prediction: str,
    alpha: float,
    sigma: float,
    *,
    kappa: float = 1.0,
    sigma_data: float = 0.5,
    rates: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """``(P, Q)`` with ``x0_hat = P x + Q e`` at the level (alpha, sigma) of the call.

    Raises ``ValueError`` where the prediction does not determine x0 (eps or score at alpha = 0).
    """
    if prediction == "x0":
        return 0.0, 1.0
    if prediction in ("eps", "score"):
        if alpha == 0.0:
            raise ValueError(
                f"prediction: {prediction!r} says nothing about x0 where alpha = 0; a path that starts there needs a "
                "network of x0, v or flow"
            )
        return (1.0 / alpha, -sigma / alpha) if prediction == "eps" else (1.0 / alpha, sigma * sigma / alpha)
    if prediction == "v":
        scale = kappa * (alpha * alpha + sigma * sigma)
        return kappa * alpha / scale, -sigma / scale
    if prediction == "flow":
        _, sigma_dot, wronskian = _flow(alpha, sigma, kappa, rates)
        return sigma_dot / wronskian, -sigma / wronskian
    if prediction == "edm":
        skip, out = _edm(alpha, sigma, sigma_data)
        return skip, out
    raise ValueError(f"prediction: got {prediction!r}, allowed are {', '.join(PREDICTIONS)}")


def to_eps(
    prediction: str,
    alpha: float,
    sigma: float,
    *,
    kappa: float = 1.0,
    sigma_data: float = 0.5,
    rates: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """``(P, Q)`` with ``eps_hat = P x + Q e`` at the level (alpha, sigma) of the call.

    Raises ``ValueError`` where the prediction does not determine eps (x0 or edm at sigma = 0).
    """
    if prediction == "eps":
        return 0.0, 1.0
    if prediction == "score":
        return 0.0, -sigma
    if prediction == "v":
        scale = kappa * (alpha * alpha + sigma * sigma)
        return kappa * sigma / scale, alpha / scale
    if prediction == "flow":
        alpha_dot, _, wronskian = _flow(alpha, sigma, kappa, rates)
        return -alpha_dot / wronskian, alpha / wronskian
    if prediction not in ("x0", "edm"):
        raise ValueError(f"prediction: got {prediction!r}, allowed are {', '.join(PREDICTIONS)}")
    if sigma == 0.0:
        raise ValueError(f"prediction: {prediction!r} says nothing about eps where sigma = 0; use an eps or v network")
    if prediction == "x0":
        return 1.0 / sigma, -alpha / sigma
    _, out = _edm(alpha, sigma, sigma_data)
    # (1 - alpha c_skip) / sigma with the difference taken by hand: it vanishes like sigma^2
    return sigma / (sigma * sigma + (alpha * sigma_data) ** 2), -alpha * out / sigma


def _flow(alpha: float, sigma: float, kappa: float, rates: tuple[float, float] | None) -> tuple[float, float, float]:
    if kappa != 1.0:
        raise ValueError("input_scaling: a flow network is fed the state itself, allowed is 'none'")
    alpha_dot, sigma_dot = (-1.0, 1.0) if rates is None else rates
    wronskian = alpha * sigma_dot - sigma * alpha_dot
    if wronskian == 0.0:
        raise ValueError("rates: alpha sigma' - sigma alpha' is 0; the velocity does not determine x0 there")
    return alpha_dot, sigma_dot, wronskian


def _edm(alpha: float, sigma: float, sigma_data: float) -> tuple[float, float]:
    # c_skip / alpha and c_out at rho = sigma / alpha, written so that alpha = 0 has its limit
    total = sigma * sigma + (alpha * sigma_data) ** 2
    return alpha * sigma_data**2 / total, sigma * sigma_data / math.sqrt(total)
