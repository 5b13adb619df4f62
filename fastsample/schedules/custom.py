"""A schedule made of two callables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastsample.path import Array, ArrayLike

from .base import Schedule, as_array, checked_ends


class CustomSchedule(Schedule):
    """Any pair of callables ``alpha(t)``, ``sigma(t)`` on float64 arrays, with falling alpha/sigma.

    ``rates``: optional callable that returns (d alpha/dt, d sigma/dt), for flow networks.
    """

    def __init__(
        self,
        alpha: Callable[[Array], ArrayLike],
        sigma: Callable[[Array], ArrayLike],
        t_min: float = 1e-3,
        t_max: float = 1.0,
        rates: Callable[[Array], tuple[ArrayLike, ArrayLike]] | None = None,
    ) -> None:
        for name, function in (("alpha", alpha), ("sigma", sigma)):
            if not callable(function):
                raise TypeError(f"{name}: got {type(function).__name__}, allowed is a callable of t")
        self._alpha, self._sigma, self._rates = alpha, sigma, rates
        self.t_min, self.t_max = checked_ends(t_min, t_max)
        with np.errstate(divide="ignore"):
            lam = self.lam(np.linspace(self.t_max, self.t_min, 101))
        if not (np.diff(lam) > 0).all():
            raise ValueError("alpha, sigma: log(alpha/sigma) must fall with t from t_min to t_max")

    def alpha(self, t: ArrayLike) -> Array:
        return np.broadcast_to(as_array(self._alpha(as_array(t))), np.shape(t))

    def sigma(self, t: ArrayLike) -> Array:
        return np.broadcast_to(as_array(self._sigma(as_array(t))), np.shape(t))

    def rates(self, t: ArrayLike) -> tuple[Array, Array] | None:
        if self._rates is None:
            return None
        alpha_dot, sigma_dot = self._rates(as_array(t))
        return np.broadcast_to(as_array(alpha_dot), np.shape(t)), np.broadcast_to(as_array(sigma_dot), np.shape(t))
