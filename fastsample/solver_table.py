"""The table of all solvers in docs/solvers.md, made from the registry: ``python -m fastsample.solver_table``."""

from __future__ import annotations

from pathlib import Path as File

import numpy as np

from fastsample import row
from fastsample.choosing import plan_for
from fastsample.models.mixture import GaussianMixture
from fastsample.plan import Plan
from fastsample.procedures import Procedure, procedures
from fastsample.solvers import registry
from fastsample.solvers.registry import Solver

PAGE = File(__file__).parent.parent / "docs" / "solvers.md"
BEGIN, END = "<!-- begin: python -m fastsample.solver_table -->", "<!-- end -->"
STEPS = 20


def table() -> str:
    """One line per solver, families together; what a row reads and writes is counted in the plan of a 20-step run, or
    of the usual number of steps."""
    lines = [
        "| solver | what it is | order | calls per step | noise | terms read | outputs written | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    known: list[Solver | Procedure] = [*registry.solvers().values(), *procedures().values()]
    lines += [_line(solver) for solver in known]
    return "\n".join(lines)


def traffic(plan: Plan) -> tuple[int, int]:
    """Most tensors that a row of the plan reads, and writes, of those in the middle of the run."""
    middle = [i for i, step in enumerate(plan.step_of) if step == plan.step_of[plan.nfe // 2]]
    reads, writes = 0, 0
    for i in middle:
        weights = plan.table[i, : 4 * row.MAX_TERMS].reshape(row.MAX_TERMS, 4)
        reads = max(reads, int(np.any(weights != 0, axis=1).sum()))
        writes = max(writes, len(plan.calls[i].outputs))
    return reads, writes


def _line(solver: Solver | Procedure) -> str:
    name = f"`{solver.name}`" + "".join(f", `{alias}`" for alias in solver.aliases)
    try:
        steps = None if "steps" in solver.usual else STEPS
        mixture = GaussianMixture.ring()
        network = mixture.phase_space() if solver.model == "phase-space" else mixture.network("eps")
        plan = plan_for(network, solver=solver.name, steps=steps)
        reads, writes = map(str, traffic(plan))
    except ValueError:  # needs options or a grid of its own, or has no plan
        reads = writes = "-"
    noise = "yes" if solver.stochastic else "no"
    return (
        f"| {name} | {solver.about} | {solver.order} | {solver.nfe} | {noise} | {reads} | {writes} | {solver.paper} |"
    )


def page(text: str) -> str:
    """``text`` with the table between its marks brought up to date."""
    head, mark, rest = text.partition(BEGIN)
    if not mark or END not in rest:
        raise ValueError(f"text: must hold the marks {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
