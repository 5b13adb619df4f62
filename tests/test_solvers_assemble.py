"""The assembler against a naive run of abstract steps: any history, noise, network, guidance, clipping and scaling."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsample.path import Path
from fastsample.plan import make_plan
from fastsample.predictions import input_scale, to_eps, to_x0
from fastsample.solvers import registry
from fastsample.solvers.step import Step

from .golden_cases import Replay

CALLS = 7


def random_steps(seed: int, depth: int, form: str, path: Path, keeping: bool) -> list[Step]:
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    names: list[str] = []
    for i in range(CALLS):
        b = rng.standard_normal(1 + min(i, rng.integers(0, depth + 1))) * (rng.random() < 0.9)
        raw, lift = rng.standard_normal() * (rng.random() < 0.3), abs(rng.standard_normal()) * (rng.random() < 0.3)
        step = Step(i, path[i], rng.standard_normal(), tuple(b.tolist()), rng.random(), form, raw, lift)
        scale = rng.random() if rng.random() < 0.3 else 1.0
        saved = {"kept": rng.standard_normal()} if names and rng.random() < 0.5 else {}
        keep = {}
        if not names or rng.random() < 0.3:  # the first call keeps it, later ones replace it
            sources = ["x", "eps", "xi", 0, *range(1, min(i, depth) + 1), *(["kept"] if names else [])]
            keep = {"kept": {source: rng.standard_normal() for source in sources if rng.random() < 0.6}}
            names.append("kept")
        if keeping:
            step = dataclasses.replace(step, scale=scale, saved=saved, keep=keep)
        if form != "raw" and rng.random() < 0.3:
            sources = ["x", "eps", 0, *range(1, min(i, depth) + 1), *(["kept"] if saved and keeping else [])]
            step = dataclasses.replace(step, d={s: rng.standard_normal() for s in sources if rng.random() < 0.6})
        steps.append(step)
    return steps


def naive(steps, x, outputs, draws, prediction, scaling, clip):
    """As docs of ``Step`` say, one thing after the other; a lift and the noise before it are one normal."""
    history, asked, previews, kept = [], [], [], {}
    x = steps[0].scale * x + steps[0].lift * draws[0]
    for i, (step, e) in enumerate(zip(steps, outputs, strict=True)):
        alpha, sigma, _ = step.at
        kappa = input_scale(scaling, alpha, sigma)
        asked.append(kappa * x)
        p, q = to_x0(prediction, alpha, sigma, kappa=kappa)
        x0 = p * x + q * e
        p, q = to_eps(prediction, alpha, sigma, kappa=kappa)
        raw = p * x + q * e
        if step.d is not None:
            made = {"x0": x0, "eps": raw, "v": alpha * raw - sigma * x0}[step.form]
            sources = {"x": x, "eps": raw, 0: made, **dict(enumerate(history, 1)), **kept}
            made = sum(w * sources[s] for s, w in step.d.items()) + 0.0 * x
            v = (alpha * x - sigma * made) / (alpha**2 + sigma**2)
            x0 = {"x0": made, "eps": (x - sigma * made) / alpha, "v": v}[step.form]
        if clip is not None:
            x0 = np.clip(x0, -clip, clip)
        previews.append(np.broadcast_to(x0, x.shape))
        eps = (x - alpha * x0) / sigma
        history.insert(0, {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "raw": e}[step.form])
        lift, scale = (steps[i + 1].lift, steps[i + 1].scale) if i + 1 < len(steps) else (0.0, 1.0)
        sources = {"x": x, "eps": raw, "xi": draws[1 + i], **dict(enumerate(history)), **kept}
        x = scale * (step.a * x + step.raw * raw) + np.hypot(scale * step.c, lift) * draws[1 + i]
        x = x + scale * sum(b * d for b, d in zip(step.b, history, strict=False))
        x = x + scale * sum(weight * kept[name] for name, weight in step.saved.items())
        kept.update({name: sum(w * sources[s] for s, w in mix.items()) + 0.0 * x for name, mix in step.keep.items()})
    return x, asked, previews


@settings(max_examples=150, deadline=None)
@example(180, 0, "x0", "eps", "none", None, None, True, False)  # the preview is zero
@given(
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.sampled_from(["x0", "eps", "v", "raw"]),
    st.sampled_from(["eps", "x0", "v", "score", "edm"]),
    st.sampled_from(["none", "vp", "edm"]),
    st.sampled_from([None, 0.7]),
    st.sampled_from([None, 2.5]),
    st.booleans(),
    st.booleans(),
)
def test_assembled_rows_do_what_the_steps_say(seed, depth, form, prediction, scaling, clip, guidance, preview, keeping):
    rng = np.random.default_rng(seed)
    lam = np.linspace(-1.0, 2.0, CALLS + 1)
    path = Path(1 / np.sqrt(1 + np.exp(-2 * lam)), 1.3 / np.sqrt(1 + np.exp(2 * lam)), np.linspace(1, 0, CALLS + 1))
    clip = None if form == "raw" else clip
    depth = min(depth, 3)  # with x, a kept tensor and two outputs of the network
    if keeping:  # at most three outputs
        preview, scaling = False, "none"
    steps = random_steps(seed, depth, form, path, keeping)
    x, cond, uncond, draws = (rng.standard_normal((CALLS + 1, 3)) for _ in range(4))
    if preview and scaling != "none":
        preview = False  # four outputs
    name = "test-assembler"
    registry.add(registry.Solver(name, lambda path: steps, "", "", order=1))
    try:
        shared = {"prediction": prediction, "input_scaling": scaling, "clip": clip, "guidance": guidance}
        plan = make_plan(name, path, denoised=preview, **shared)
    finally:
        del registry._solvers[name], registry._names[name]
    pairs = list(zip(cond, uncond, strict=True)) if guidance else cond
    outputs = guidance * cond + (1 - guidance) * uncond if guidance else cond
    run = Replay(plan, x[0], pairs[:CALLS], draws)
    end, asked, previews = naive(steps, x[0], outputs[:CALLS], draws, prediction, scaling, clip)
    scale = max(1.0, np.abs(asked).max())
    np.testing.assert_allclose(run.asked, asked, rtol=0, atol=1e-11 * scale)
    np.testing.assert_allclose(run.x, end, rtol=0, atol=1e-11 * max(scale, np.abs(end).max()))
    if preview:
        np.testing.assert_allclose(run.previews, previews, rtol=0, atol=1e-11 * scale)
