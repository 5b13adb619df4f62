"""A whole run, or a step, as one graph: how often torch compiles, and that the bits are those of `sample`."""

from __future__ import annotations

import io

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE
from torch._inductor.utils import run_and_get_code

import fastsample
from fastsample import Loop, Network, PhaseSpace, StepLoop, keys, make_path, make_plan, sample
from fastsample.choosing import plan_for
from fastsample.solvers import registry

from .conftest import vp_path
from .graphs import counted

SHAPE = (4, 3, 6, 6)


class Net(torch.nn.Module):
    """Elementwise, so that its bits are the same however it is compiled; a class is optional."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.linspace(0.2, 0.6, 6)[:, None])

    def forward(self, x, t, label=None):
        x = x * self.scale + t.reshape(-1, 1, 1, 1) * 0.1
        return x if label is None else x + label.reshape(-1, 1, 1, 1) * 0.01


def compiled(model, **how):
    return torch.compile(model, backend="aot_eager", fullgraph=True, **how)


def plan_of(solver, steps=4, path=None, **options):
    return make_plan(solver, path or vp_path(steps), **options)


CLASSES = {"cond": torch.arange(4.0), "uncond": torch.zeros(4)}
# plans of one pattern: other grid, schedule, guidance weight, prediction, solver
ALIKE = {
    "ddpm": [plan_of("ddpm", path=make_path("cosine", steps=4)), plan_of("euler-maruyama"), plan_of("euler-ancestral")],
    "dpmpp-2m": [
        plan_of("dpmpp-2m", path=make_path("cosine", steps=4)),
        plan_of("usf"),
        plan_of("dpmpp-2m", clip=1),
    ],
    "euler": [plan_of("ddim"), plan_of("dpmpp-1", prediction="x0"), plan_of("lambda-ddim")],
}


@pytest.mark.parametrize("solver", ALIKE)
def test_one_graph_of_the_run_serves_plans_of_one_pattern(solver):
    net, x = Net(), torch.empty(SHAPE)
    with counted() as count:
        loop = Loop(net, plan_of(solver))
        run = compiled(loop)
        for seed, plan in enumerate([plan_of(solver), *ALIKE[solver]]):
            loop.load(plan)
            assert torch.equal(run(x, keys(seed, 4)), sample(net, SHAPE, plan=plan, seed=seed))
            other = compiled(Loop(Net(), plan))  # and a loop of its own with a network of its own
            assert torch.equal(other(x, keys(seed + 9, 4)), sample(net, SHAPE, plan=plan, seed=seed + 9))
        assert count.graphs == 1 and not count.breaks


@pytest.mark.parametrize("one_batch", [True, False])
def test_one_graph_of_the_run_serves_guidance_weights(one_batch):
    net, x = Network(Net(), one_batch=one_batch), torch.empty(SHAPE)
    with counted() as count:
        loop = Loop(net, plan_of("sde-dpmpp-2m", guidance=2.0))
        run = compiled(loop)
        for weight in (2.0, 7.5, [1.0, 2.0, 3.0, 4.0]):
            plan = plan_of("sde-dpmpp-2m", guidance=weight)
            loop.load(plan)
            for cond in (CLASSES["cond"], CLASSES["cond"] + 1):
                given = {"cond": cond, "uncond": CLASSES["uncond"]}
                assert torch.equal(run(x, keys(3, 4), **given), sample(net, SHAPE, plan=plan, seed=3, **given))
        assert count.graphs == 1 and not count.breaks


def test_one_graph_of_the_run_serves_rescaled_guidance():
    net, x = Net(), torch.empty(SHAPE)
    with counted() as count:
        loop = Loop(net, plan_of("ddim", guidance=2.0, rescale=0.7))
        run = compiled(loop)
        for weight, phi in ((2.0, 0.7), (7.5, 0.7), ([1.0, 2.0, 3.0, 4.0], 0.3), (3.0, 0.0)):
            plan = plan_of("ddim", guidance=weight, rescale=phi)
            loop.load(plan)
            assert torch.equal(run(x, keys(3, 4), **CLASSES), sample(net, SHAPE, plan=plan, seed=3, **CLASSES))
        assert count.graphs == 1 and not count.breaks


PLANS = {
    "scaled input": lambda: plan_of("dpmpp-2m", input_scaling="vp"),
    "three slots": lambda: plan_of("sde-dpmpp-3m", 5),
    "two stages": lambda: plan_of("heun"),
    "threshold": lambda: plan_of("ddpm", threshold=0.9),
    "rescaled guidance": lambda: plan_of("ddpm", guidance=3.0, rescale=0.7),
}


@pytest.mark.parametrize("name", PLANS)
def test_run_has_the_bits_of_sample(name):
    plan, net = PLANS[name](), Net()
    given = CLASSES if plan.guided else {}
    with counted() as count:
        made = compiled(Loop(net, plan))(torch.empty(SHAPE), keys(1, 4), **given)
        assert count.graphs == 1 and not count.breaks
    assert torch.equal(made, sample(net, SHAPE, plan=plan, seed=1, **given))


@pytest.mark.parametrize("solver", ["sscs", "nse", "psld-whitened"])
def test_run_of_phase_space_has_the_bits_of_sample(solver):
    net = Network(Net(), space=PhaseSpace())
    plan = plan_for(net, solver=solver, steps=4)
    with counted() as count:
        made = compiled(Loop(net, plan))(torch.empty(SHAPE), keys(1, 4))
        assert count.graphs == 1
    assert torch.equal(made, sample(net, SHAPE, plan=plan, seed=1))


@pytest.mark.parametrize("start", ["state", "data"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_starts_and_dtypes(start, dtype):
    net, x = Net().to(dtype), torch.randn(SHAPE).to(dtype)
    plan = plan_of("ddpm")
    with counted():
        made = compiled(Loop(net, plan, start=start))(x, keys(1, 4))
        steps = StepLoop(net, plan, start=start)
        steps.step.compile(backend="aot_eager", fullgraph=True)
        stepped = steps(x, keys(1, 4))
    wanted = sample(net, x, plan=plan, seed=1, start=0 if start == "data" else None)
    assert torch.equal(made, wanted) and torch.equal(stepped, wanted)


def linear_solvers():
    for name in registry.names():
        entry = registry.find(name)
        if entry.model != "phase-space" and name != "ctm":  # ctm asks for two times, of networks made for that
            yield name


def test_one_graph_of_a_step_serves_all_solvers_of_one_memory():
    """Every linear solver, at 4 or 7 steps: a graph per number of tensors in memory, written, and noise."""
    net, x, memories = Net(), torch.empty(2, 1, 6, 6), set()
    with counted() as count, torch._dynamo.config.patch(recompile_limit=64):
        for n, solver in enumerate(linear_solvers()):
            plan = plan_for(Network(net), solver=solver, steps=4 + 3 * (n % 2))
            loop = StepLoop(net, plan)
            loop.step.compile(backend="aot_eager", fullgraph=True)
            memories.add((loop.memory, loop.depth, loop.pattern.noisy))
            assert torch.equal(loop(x, keys(5, 2)), sample(net, x.shape, plan=plan, seed=5)), solver
        assert count.graphs == len(memories) <= 10 and not count.breaks


def test_one_graph_of_a_step_serves_seeds_grids_guidance_and_numbers_of_steps():
    net, x = Net(), torch.empty(SHAPE)
    with counted() as count:
        loop = StepLoop(net, plan_of("sde-dpmpp-2m", guidance=2.0))
        loop.step.compile(backend="aot_eager", fullgraph=True)
        for seed, steps in enumerate((4, 9, 3)):
            path = make_path("cosine", steps=steps)
            for plan in (
                plan_of("sde-dpmpp-2m", guidance=1.0 + seed, path=path),
                plan_of("dpmpp-sde", guidance=2.0, steps=steps, prediction="v"),
            ):
                loop.load(plan)
                made = loop(x, keys(seed, 4), **CLASSES)
                assert torch.equal(made, sample(net, SHAPE, plan=plan, seed=seed, **CLASSES))
        with torch.inference_mode():
            loop(x, keys(0, 4), **CLASSES)
        assert count.graphs == 1 and not count.breaks


def test_batch_sizes_are_one_more_graph():
    net, plan = Net(), plan_of("ddpm")
    with counted() as count:
        run = compiled(Loop(net, plan))
        for batch in (4, 5, 8, 7):
            shape = (batch, *SHAPE[1:])
            assert torch.equal(run(torch.empty(shape), keys(0, batch)), sample(net, shape, plan=plan, seed=0))
        assert count.graphs == 2


def test_sample_itself_in_a_graph():
    net = Net()
    with counted() as count:
        run = compiled(lambda plan, key: sample(net, SHAPE, plan=plan, seed=key))
        for seed, plan in enumerate([plan_of("ddpm"), *ALIKE["ddpm"]]):
            assert torch.equal(run(plan, keys(seed, 4)), sample(net, SHAPE, plan=plan, seed=seed))
        assert count.graphs == 1 and not count.breaks


def test_seeds_of_sample_in_a_graph():
    """torch takes the first whole number for a constant and the second for a variable."""
    net, plan, x = Net(), plan_of("ddpm", 2), torch.randn(SHAPE)
    with counted() as count:
        run = compiled(lambda seed: sample(net, x, plan=plan, seed=seed, start=0))
        for seed in (0, 1, 5, 2**40):
            assert torch.equal(run(seed), sample(net, x, plan=plan, seed=seed, start=0))
        assert count.graphs == 2 and not count.breaks


def test_sample_by_name_breaks_once_and_then_is_one_graph():
    net, x = Net(), torch.randn(SHAPE)
    with counted() as count:
        run = torch.compile(lambda x: sample(net, x, solver="ddpm", steps=2, seed=0), backend="aot_eager")
        for _ in range(2):
            assert torch.equal(run(x), sample(net, x, solver="ddpm", steps=2, seed=0))
        assert count.graphs <= 2
    with counted(), pytest.raises(Unsupported, match=r"needs plan=fastsample.make_plan"):
        compiled(lambda x: sample(net, x, solver="ddpm", steps=2, seed=0))(x)


@pytest.mark.parametrize("asked", [{"callback": print}, {"stats": {}}, {"return_trajectory": True}])
def test_sample_in_a_graph_refuses_what_a_graph_cannot_do(asked):
    net, plan = Net(), plan_of("ddpm")
    with counted(), pytest.raises(ValueError, match=f"{next(iter(asked))}: cannot be given where torch.compile"):
        torch.compile(lambda: sample(net, SHAPE, plan=plan, seed=0, **asked), backend="aot_eager")()


def test_procedures_in_a_graph_are_refused():
    with counted(), pytest.raises(ValueError, match=r"solver: 'dpm-adaptive' decides while it runs"):
        torch.compile(lambda: sample(Net(), SHAPE, solver="dpm-adaptive", seed=0), backend="aot_eager")()


def test_gradients_through_the_compiled_run():
    plan, made = plan_of("dpmpp-2m", 2), []
    start = torch.randn(SHAPE, dtype=torch.float64)
    with counted() as count:
        for way in (sample, compiled, Loop.eval):
            net, x = Net().double(), start.clone().requires_grad_()
            if way is sample:
                table, y = None, sample(net, x, plan=plan, seed=0, grad=True)
            else:
                loop = Loop(net, plan, start="state", grad=True)
                table = loop.table.requires_grad_()
                y = way(loop)(x, keys(0, 4))
            y.square().sum().backward()
            made.append((y.detach(), x.grad, net.scale.grad, None if table is None else table.grad))
        assert count.graphs == 1 and not count.breaks
    for theirs, ours, again in zip(made[0], made[1], made[2], strict=True):
        torch.testing.assert_close(ours, again, rtol=1e-10, atol=1e-12)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert made[1][3].isfinite().all() and made[1][3].abs().max() > 0


def test_inductor_copies_no_state():
    """The generated code calls the op in place on as many tensors of the state as the bank has, and clones none."""
    net, plan, x = (lambda x, t: x * 0.5), plan_of("sde-dpmpp-3m"), torch.randn(2, 3, 8, 8)
    with counted() as count:
        made, (code,) = run_and_get_code(torch.compile(Loop(net, plan), fullgraph=True), x, keys(2, 2))
        assert torch.equal(made, sample(net, x.shape, plan=plan, seed=2))
        assert code.count("torch.ops.fastsample.update_.default(") == 1 + plan.nfe
        body = code[code.index("def call") :]
        states = [line for line in body.splitlines() if "empty_strided" in line and "(2, 3, 8, 8)" in line]
        assert len(states) == len(plan.slots) + 1  # and one for the network's output
        assert "auto_functionalized" not in code

        loop = StepLoop(net, plan)
        loop.step.compile(fullgraph=True)
        made, (code,) = run_and_get_code(loop, x, keys(2, 2))
        assert torch.equal(made, sample(net, x.shape, plan=plan, seed=2))
        body = code[code.index("def call") :]
        states = [line for line in body.splitlines() if "empty_strided" in line]
        assert len(states) == 1 and body.count("torch.ops.fastsample.update_.default(") == 1
        assert count.graphs == 2 and not count.breaks


def test_export_of_a_run():
    net, plan = Net(), plan_of("sde-dpmpp-2m")
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=1024)
        sizes = {"x": {0: batch}, "key": {0: batch}}
        program = torch.export.export(Loop(net, plan), (torch.empty(SHAPE), keys(0, 4)), dynamic_shapes=sizes)
        if torch.uint64 in _TORCH_TO_SERIALIZE_DTYPE:  # not in torch 2.11
            file = io.BytesIO()
            torch.export.save(program, file)
            file.seek(0)
            program = torch.export.load(file)
        run = program.module()
        for count in (4, 6):
            shape = (count, *SHAPE[1:])
            assert torch.equal(run(torch.empty(shape), keys(7, count)), sample(net, shape, plan=plan, seed=7))


def test_export_of_a_step():
    net, plan = Net(), plan_of("dpmpp-2m")
    loop, x = StepLoop(net, plan), torch.randn(SHAPE)
    row, zero = loop.table[1:2], torch.zeros((), dtype=torch.int64)
    given = (None, [x, x * 0.3], [], [torch.empty_like(x)], row, zero, torch.full((4,), 0.5), None)
    with torch.no_grad():
        step = torch.export.export(loop.step, given).module()
        made, wanted = ((None, [x.clone(), x * 0.3], [], [torch.empty_like(x)], *given[4:]) for _ in range(2))
        step(*made)
        loop.step(*wanted)
    assert torch.equal(made[1][0], wanted[1][0]) and torch.equal(made[3][0], wanted[3][0])
    assert not torch.equal(made[1][0], x)


def test_tables_keep_their_dtype_and_stay_out_of_the_state():
    loop = Loop(Net(), plan_of("ddpm")).to(torch.bfloat16)
    assert loop.table.dtype == loop.times.dtype == torch.float64 and loop.steps.dtype == torch.int64
    assert loop.net.scale.dtype == torch.bfloat16
    assert list(loop.state_dict()) == ["net.scale"]
    assert loop.to("meta").table.is_meta


def test_refusals():
    net, plan = Net(), plan_of("ddpm")
    loop = Loop(net, plan)
    for bad, text in ((plan_of("ddpm", 5), "calls"), (plan_of("euler"), "noisy"), (plan_of("heun"), "slots")):
        with pytest.raises(ValueError, match=f"plan: its {text} are"):
            loop.load(bad)
    with pytest.raises(ValueError, match="key: got none"):
        loop(torch.empty(SHAPE))
    with pytest.raises(TypeError, match="plan: got str"):
        Loop(net, "ddpm")
    with pytest.raises(ValueError, match="start: got 'middle'"):
        StepLoop(net, plan, start="middle")
    with pytest.raises(ValueError, match="grad: no gradient"):
        Loop(net, plan_of("ddpm", threshold=0.9), grad=True)
    with pytest.raises(ValueError, match="thresholding"):
        StepLoop(net, plan_of("ddpm", threshold=0.9))
    space = Network(net, space=PhaseSpace())
    with pytest.raises(ValueError, match="position and momentum"):
        StepLoop(space, plan_for(space, solver="sscs", steps=3))
    with pytest.raises(ValueError, match=r"seed: got \(3, 2\)"):
        sample(net, SHAPE, plan=plan, seed=keys(0, 3))
    assert fastsample.Loop is Loop
