"""The phase-space samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastsample.path import Path
from fastsample.solvers.phase import baselines
from fastsample.solvers.phase.assemble import Made
from fastsample.solvers.phase.conjugate import lambda_ddim
from fastsample.solvers.phase.process import OPTIONS, check_path, process_of
from fastsample.solvers.phase.splitting import conjugate_splitting, splitting
from fastsample.solvers.phase.stage import Stage
from fastsample.solvers.phase.whitened import whitened
from fastsample.solvers.registry import Solver, add

PSLD = "Pandey, Mandt 2023, arXiv 2303.01748"
EI = "Pandey, Rudolph, Mandt 2024, arXiv 2310.07894"
GDDIM = "after Zhang, Tao, Chen 2023, arXiv 2206.05564 (gDDIM)"


def _solver(
    name: str,
    make: Callable[..., list[Stage]],
    about: str,
    paper: str,
    *,
    order: int = 1,
    nfe: int = 1,
    stochastic: bool = False,
    aliases: tuple[str, ...] = (),
    last: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Register ``make(path, process, **options)``, the process taken from the options and the last step added."""

    def steps(path: Path, *, last: str, **values: Any) -> Made:
        process = process_of(values)
        check_path(path, process, name)
        stages = make(path, process, **{k: v for k, v in values.items() if k not in OPTIONS})
        return Made(process, [*stages, *baselines.last_step(process, path.steps, path[-1], last)])

    ends = last or ("full" if stochastic else "none")
    add(
        Solver(
            name,
            steps,
            about,
            paper,
            order=order,
            nfe=nfe,
            stochastic=stochastic,
            aliases=aliases,
            options={**(options or {}), "last": ends, **OPTIONS},
            ends="noisy",
            usual={"grid": "quadratic"},
            model="phase-space",
        )
    )


def _split(name: str, about: str, word: str, *, share: bool, nfe: int, aliases: tuple[str, ...] = ()) -> None:
    noisy = "O" in word
    options = {"word": word, "first": "m", "share": share, "times": "end" if share else "start"}
    more = {"lambda_s": 1.0, "window": "step"} if noisy else {}
    _solver(
        name,
        splitting,
        about,
        f"{EI}, section 4",
        nfe=nfe,
        stochastic=noisy,
        aliases=aliases,
        options={**options, **more},
    )


def _conjugate(
    name: str, about: str, word: str, lam: float, kind: str, nfe: int, aliases: tuple[str, ...] = ()
) -> None:
    noisy = "O" in word
    options = {"word": word, "first": "m", "share": True, "times": "end", "lam": lam, "kind": kind}
    more = {"lambda_s": 1.0, "window": "step"} if noisy else {}
    _solver(
        name,
        conjugate_splitting,
        about,
        f"{EI}, section 5 (idea; the tables are derived here)",
        nfe=nfe,
        stochastic=noisy,
        aliases=aliases,
        options={**options, **more},
    )


_solver("psld-euler", baselines.euler, "phase space: Euler on the probability flow of (x, m)", PSLD, last="half")
_solver(
    "psld-em",
    baselines.euler_maruyama,
    "phase space: Euler-Maruyama on the reverse SDE of (x, m)",
    f"{PSLD}, section 4",
    stochastic=True,
    aliases=("cld-em",),
)
_solver(
    "sscs",
    baselines.symmetric_splitting,
    "phase space: symmetric splitting, exact half flows around a step of the score",
    f"Dockhorn, Vahdat, Kreis 2022, arXiv 2112.07068; {PSLD}, appendix D",
    stochastic=True,
    options={"strict": False},
)
_solver(
    "lambda-ddim-psld",
    lambda_ddim,
    "phase space: conjugate integrator lambda-DDIM-I (kind=I) or -II (kind=1)",
    f"{EI}, section 3",
    aliases=("psld-ddim",),
    options={"lam": 0.0, "kind": "1"},
)
_split("nse", "phase space: symplectic Euler, momentum then position", "BA", share=False, nfe=2)
_split("rse", "phase space: symplectic Euler, one call for both", "BA", share=True, nfe=1)
_split("nvv", "phase space: velocity Verlet", "BAB", share=False, nfe=3)
_split("rvv", "phase space: velocity Verlet, one call for kick and drift", "BAB", share=True, nfe=2)
_split("noba", "phase space SDE: noise, momentum, position", "OBA", share=False, nfe=2)
_split("roba", "phase space SDE: noise, then momentum and position", "OBA", share=True, nfe=1, aliases=("sps-s",))
_split("nbao", "phase space SDE: momentum, position, noise", "BAO", share=False, nfe=2)
_split("rbao", "phase space SDE: momentum and position, then noise", "BAO", share=True, nfe=1)
_split("nobab", "phase space SDE: noise, then velocity Verlet", "OBAB", share=False, nfe=3)
_split("robab", "phase space SDE: noise, then velocity Verlet with a shared call", "OBAB", share=True, nfe=2)
_conjugate("cse", "phase space: symplectic Euler of conjugate steps", "BA", 0.0, "I", nfe=1)
_conjugate("cvv", "phase space: velocity Verlet of conjugate steps", "BAB", 0.0, "I", nfe=2, aliases=("csps-d",))
_conjugate("coba", "phase space SDE: noise, then symplectic Euler of conjugate steps", "OBA", 0.0, "I", nfe=1)
_solver(
    "psld-whitened",
    whitened,
    "phase space: exponential steps on eps whitened by the root that the flow carries along",
    GDDIM,
    order=2,
    aliases=("gddim-psld",),
    options={"order": 2},
)
