"""The black-box solver: recorded runs of the authors' program, tolerance, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastsample import Network, PhaseSpace, make_path, sample

from .phase_cases import mixture, recorded


@pytest.mark.parametrize("case", recorded("psld_bbode"), ids=repr)
def test_recorded_runs(case):
    """SciPy's RK45, step for step: the same calls and, to rounding, the same states."""
    process = PhaseSpace(case["Gamma"], case["nu"], 8.0, case["kappa"], jitter=case["jitter"])
    z = torch.tensor(np.concatenate([case["x_T"], case["m_T"]], axis=1))
    for last, key in (("none", "pre_denoise_x"), ("half", "out_x")):
        stats, options = {}, {"rtol": case["rtol"], "atol": case["atol"], "last": last}
        x = sample(mixture().phase_space(process), z, solver="psld-ode", stats=stats, seed=0, **options)
        np.testing.assert_allclose(x.numpy(), case[key], rtol=0, atol=1e-10)
        assert stats["nfe"] == case["nfe"] - (last == "none")
        assert stats["nfe"] == 2 + 6 * (stats["accepted"] + stats["rejected"]) + (last == "half")


def test_tolerance_guidance_and_predictions():
    data = mixture().phase_space()
    exact = sample(data, (6, 4), solver="psld-ode", rtol=1e-6, atol=1e-6, seed=1, dtype=torch.float64)
    loose = sample(data, (6, 4), solver="psld-ode", rtol=1e-4, atol=1e-4, seed=1, dtype=torch.float64)
    fine = sample(data, (6, 4), solver="psld-whitened", steps=500, last="half", seed=1, dtype=torch.float64)
    assert float((exact - loose).abs().max()) < 2e-2
    assert float((exact - fine).abs().max()) < 2e-3
    assert exact.is_contiguous()

    def score(z, t):
        K = torch.tensor(PhaseSpace().K(float(t[0])))
        return -torch.einsum("rs,bsd->brd", K, data.fn(z, t).reshape(-1, 2, 4)).reshape(z.shape)

    loud = {"solver": "psld-ode", "rtol": 1e-3, "atol": 1e-3, "seed": 1, "dtype": torch.float64}
    plain = sample(data, (6, 4), **loud)
    torch.testing.assert_close(sample(Network(score, "score", space=data.space), (6, 4), **loud), plain, rtol=1e-9, atol=1e-9)  # fmt: skip  # noqa: E501
    pair = Network(lambda z, t: (data.fn(z, t), 3.0 * data.fn(z, t)), space=data.space)
    one = Network(lambda z, t: -1.0 * data.fn(z, t) + 2.0 * data.fn(z, t), space=data.space)
    torch.testing.assert_close(
        sample(pair, (6, 4), guidance=1.0, **loud), sample(one, (6, 4), **loud), rtol=1e-9, atol=1e-9
    )


def test_trajectory_and_callback():
    seen, stats = [], {}
    out = sample(
        mixture().phase_space(), (3, 4), solver="psld-ode", rtol=1e-3, atol=1e-3, seed=0, stats=stats,
        return_trajectory=True, callback=lambda info: seen.append((info.step, info.t)),
    )  # fmt: skip
    assert len(out.states) == stats["accepted"] + 2  # the start, the steps, the step to data
    assert len(seen) == stats["nfe"]
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert seen[-1][1] == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad": True}, "grad: 'psld-ode' writes in place"),
        ({"denoised": True}, "denoised: 'psld-ode'"),
        ({"rtol": 0.0}, "rtol: got 0.0"),
        ({"last": "some"}, "last: got 'some'"),
        ({"clip": 1.0}, "clip: got 1.0 with a phase-space solver"),
        ({"guidance": [1.0, 2.0]}, "guidance: got one weight per call"),
        ({"path": make_path("vp-linear", "uniform", 3)}, "path: its levels"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        sample(mixture().phase_space(), (3, 4), solver="psld-ode", **options)
    with pytest.raises(FloatingPointError, match="the error of a step is not finite"):
        sample(Network(lambda z, t: z * torch.nan, space=PhaseSpace()), (3, 4), solver="psld-ode")
