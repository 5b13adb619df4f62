"""fastsample::metropolis_: the log-ratio, the choice, the move, against formulas written plainly."""

from __future__ import annotations

import math

import pytest
import torch

from fastsample import decision, native, noise, row
from fastsample.ops import metropolis_, update, use_backend

ZERO = torch.zeros((), dtype=torch.int64)


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not native.load_for("cpu"):
        pytest.skip(f"no native CPU library: {native.why_not('cpu')}")
    with use_backend("auto" if request.param == "native" else request.param):
        yield request.param


def rtk(tau=0.02, r=0.8, v=0.3, sigma=0.5, q=None, energy=False, draw=3, radii=(math.inf, math.inf)):
    """A row of RTK-MALA (Huang et al. 2024) for an eps network: terms are the condition x and maybe a midpoint."""
    move = row.make_row(
        outputs=[
            {0: 1 - tau * r * r / v, 1: -tau / sigma, 2: tau * r / v, "xi0": math.sqrt(2 * tau)},
            {0: 0.5, 2: 0.25},
        ],
        draws=[1],
    )
    quadratic = {"term0": -r / v}
    return decision.make_decision(
        move,
        A={name: weight / sigma for name, weight in (q or {}).items()},
        G={"state": r * r / v, "cache": 1 / sigma} | quadratic,
        H={"proposal": r * r / v, "fresh": 1 / sigma} | quadratic,
        kappa=tau / 4,
        energy=energy,
        radii=radii,
        draw=draw,
    )


def test_accept_identity(backend):
    """The simplified log-ratio is the textbook one (section 3 of Roberts and Tweedie 1996) for a known energy."""
    generator = torch.Generator().manual_seed(1)
    tau, r, v = 0.02, 0.8, 0.3
    z, xi, x = (torch.randn(6, 50, generator=generator, dtype=torch.float64) for _ in range(3))
    f, grad = (lambda y: (y**4 / 4 + torch.sin(y)).sum(1)), (lambda y: y**3 + torch.cos(y))
    whole = lambda y: f(y) + ((x - r * y) ** 2).sum(1) / (2 * v)  # noqa: E731
    slope = lambda y: grad(y) + r / v * (r * y - x)  # noqa: E731
    z_new = z - tau * slope(z) + math.sqrt(2 * tau) * xi
    forth, back = z_new - z + tau * slope(z), z - z_new + tau * slope(z_new)
    expected = whole(z) - whole(z_new) + ((forth**2).sum(1) - (back**2).sum(1)) / (4 * tau)

    table = torch.from_numpy(rtk(tau, r, v, 1.0, {"cache": 0.5, "fresh": 0.5}, energy=True)[None])
    chain = torch.zeros(6, 5, dtype=torch.float64)
    chain[:, 0], chain[:, 1] = f(z), f(z_new)
    state, cache, outs = z.clone(), grad(z), [torch.empty_like(z), torch.empty_like(z)]
    key = noise.keys(5, 6)
    metropolis_(state, cache, outs, chain, z_new, grad(z_new), [x], table, ZERO, key)
    assert ((chain[:, 2] - expected) / (1 + expected.abs())).abs().max() <= 1e-12
    accept = torch.log(noise.choice_uniform(key, 3)) < expected
    assert torch.equal(chain[:, 3], accept.double()) and torch.equal(chain[:, 4], accept.double())
    assert torch.equal(chain[:, 0], torch.where(accept, f(z_new), f(z)))
    chosen = torch.where(accept[:, None], z_new, z)
    assert torch.equal(state, chosen)
    assert torch.equal(cache, torch.where(accept[:, None], grad(z_new), grad(z)))
    moved = update([chosen, grad(chosen), x], table[:, : row.COLUMNS].contiguous(), ZERO, key, outputs=2)
    for out, one in zip(outs, moved, strict=True):
        assert torch.allclose(out, one, rtol=1e-13, atol=1e-13)
