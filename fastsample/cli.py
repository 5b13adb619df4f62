"""The command ``fastsample``: sample, compare, plan, solvers, info, doctor, profile.

Mistakes of the user end in one line on stderr that says what to do, and exit code 2; ``--traceback`` shows the rest.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__

_DTYPES = ["float32", "float64", "bfloat16", "float16"]
_OPEN = {"ignore_unknown_options": True, "allow_extra_args": True}  # those are the solver's
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` if None) and return the exit code: 0, 2 for a mistake, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    show = "--traceback" in arguments
    try:
        result = cli.main(args=arguments, prog_name="fastsample", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _fail(error.format_message())
    except click.exceptions.Abort:
        return 130
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _expected() as error:
        if show:
            raise
        return _fail(str(error))


def _expected() -> tuple[type[Exception], ...]:
    from .errors import BackendError

    return (ValueError, TypeError, FloatingPointError, OSError, ImportError, BackendError)


def _fail(message: str) -> int:
    print("fastsample: error: " + " ".join(message.split()), file=sys.stderr)
    return 2


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__)
def cli() -> None:
    """Training-free diffusion and flow samplers as tables of numbers, applied by one fused update."""


def _shared(command: Any) -> Any:
    """Options that make a plan."""
    for option in reversed(
        (
            click.option("--steps", type=int, help="Steps of the path; by default 20 or what is usual for the solver."),
            click.option("--schedule", help="Noise schedule; by default that of the model."),
            click.option("--grid", help="How the steps are spaced; by default evenly in log-SNR, to clean data."),
            click.option("--prediction", help="What the network predicts, if the model does not say so."),
            click.option("--guidance", type=float, help="Weight of classifier-free guidance."),
            click.option(
                "-o",
                "--option",
                "options",
                multiple=True,
                metavar="NAME=VALUE",
                help="For the solver (sample: or --NAME VALUE).",
            ),
            click.option("--traceback", is_flag=True, help="Show where an error came from."),
        )
    ):
        command = option(command)
    return command


@cli.command(context_settings=_OPEN)
@click.option("--model", "model_name", default="digits", show_default=True, help="digits, mixture or path.py:factory.")
@click.option("--solver", default="dpmpp-2m", show_default=True, help="See: fastsample solvers.")
@_shared
@click.option("-n", "--number", type=int, default=64, show_default=True, help="How many samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all noise.")
@click.option("--batch", type=int, help="Samples per network call; by default all. The noise does not depend on it.")
@click.option("--classes", help="Labels to go through, such as 0-9 or 3,5; by default all that the model has.")
@click.option("--shape", help="Shape of one sample, such as 3,32,32, if the model does not say it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder to write.")
@click.option("--fid", is_flag=True, help="Measure the digit-FID of the samples (use 1000 or more).")
@click.option("--device", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="float32", show_default=True, help="Of the state.")
@click.option("--backend", help="auto, native, triton or reference.")
@click.option("--progress/--no-progress", default=True, help="Progress bar, on a terminal.")
@click.pass_context
def sample(context: click.Context, /, **choice: Any) -> None:
    """Draw samples and write a picture, the samples and a report.

    Options of the solver may be given by name: --solver rtk-mala --inner 4.
    """
    from .job import run_job

    del choice["traceback"]
    choice["options"] = _options([*choice["options"], *_further(context.args)])
    choice["classes"] = None if choice["classes"] is None else _numbers("--classes", choice["classes"])
    choice["shape"] = None if choice["shape"] is None else _numbers("--shape", choice["shape"])
    run_job(**choice, say=click.echo)


@cli.command()
@click.option("--model", "model_name", default="digits", show_default=True, help="digits, mixture or path.py:factory.")
@click.option("--solvers", required=True, help="Names, such as ddim,dpmpp-2m,ddpm or ddim:eta=0.5.")
@click.option("--nfe", default="5,10,20", show_default=True, help="Network calls that a run may take.")
@click.option("-n", "--number", type=int, default=1000, show_default=True, help="How many samples at each point.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all noise; solvers share the start.")
@click.option("--batch", type=int, default=250, show_default=True, help="Samples per network call.")
@click.option("--guidance", type=float, help="Weight of classifier-free guidance.")
@click.option("--schedule", help="Noise schedule; by default that of the model.")
@click.option("--grid", help="How the steps are spaced; by default evenly in log-SNR, to clean data.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/compare"), show_default=True, help="Folder.")
@click.option("--device", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def compare(solvers: str, nfe: str, traceback: bool, **choice: Any) -> None:
    """Work-precision plot and CSV: digit-FID and error of solvers over network calls."""
    from .compare import compare as run

    run(solvers=[s for s in solvers.split(",") if s], nfe=_numbers("--nfe", nfe), say=click.echo, **choice)


@cli.command(context_settings=_OPEN)
@click.argument("solver")
@_shared
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON.")
@click.pass_context
def plan(
    context: click.Context, /, solver: str, options: Sequence[str], traceback: bool, as_json: bool, **choice: Any
) -> None:
    """Print the table of a solver."""
    from .choosing import split_steps, usual_path
    from .plan import make_plan
    from .solvers import registry

    made = _options([*options, *_further(context.args)])
    steps = split_steps(registry.find(solver), choice["steps"], made)
    path = usual_path(solver, choice["schedule"], choice["grid"], steps, made)
    shared = {"prediction": choice["prediction"] or "eps", "guidance": choice["guidance"]}
    table = make_plan(solver, path, **shared, **made)
    click.echo(table.to_json() if as_json else str(table))


@cli.command()
@click.argument("name", required=False)
def solvers(name: str | None) -> None:
    """List the solvers, or describe one."""
    from . import procedures
    from . import solvers as registry

    if name is not None:
        click.echo(registry.describe(name))
        return
    known: list[Any] = [*registry.solvers().values(), *procedures.procedures().values()]
    width = max(len(s.name) for s in known)
    click.echo(f"{'solver':{width}}  order  calls/step  noise  what it is")
    for s in known:
        click.echo(f"{s.name:{width}}  {s.order:>5}  {s.nfe:>10}  {'yes' if s.stochastic else 'no':>5}  {s.about}")


@cli.command()
def info() -> int:
    """Versions, devices, and per op the backend that runs and why not a better one."""
    from .info import main as show

    return show()


@cli.command()
@click.option("--audit", metavar="SCHEDULER", required=True, help="Ours (X), theirs (diffusers.X), or all.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="For the class or its step.")
@click.option("--steps", type=int, default=10, show_default=True, help="Steps of the run.")
@click.option("--shape", default="2,4,64,64", show_default=True, help="Shape of the state.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="float16", show_default=True, help="Of the state.")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def doctor(audit: str, options: Sequence[str], steps: int, shape: str, dtype: str, traceback: bool) -> None:
    """Count reads, copies and launches per step of a diffusers scheduler; needs no accelerator."""
    from .integrations.diffusers.audit import run

    run(audit, _options(options), steps, _numbers("--shape", shape), dtype, say=click.echo)


@cli.command(context_settings={"allow_interspersed_args": False})
@click.option("--tool", default="auto", show_default=True, help="nsys, torch, or auto: nsys if it is on the PATH.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/profile"), show_default=True, help="Folder.")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.argument("job", nargs=-1, type=click.UNPROCESSED)
def profile(job: tuple[str, ...], tool: str, out: Path, traceback: bool) -> int:
    """Trace a job and say where its time goes: fastsample profile -- sample --steps 5, or -- python SCRIPT.

    Writes a trace, summary.json and summary.txt: time in network, updates and gaps; launches and host reads per step.
    """
    from .profiling.job import profile as run

    def main(words: list[str]) -> Any:
        return cli.main(args=words, prog_name="fastsample", standalone_mode=False)

    return run(job, out, tool, commands=("sample", "compare"), main=main, say=click.echo)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--option: got {pair!r}, need NAME=VALUE such as eta=0.5")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found


def _further(words: Sequence[str]) -> list[str]:
    """``--name value`` and ``--name=value`` as NAME=VALUE."""
    pairs, left = [], list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ValueError(f"arguments: got {word!r}, allowed are options such as --steps 10 (see --help)")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise ValueError(f"--{name}: got no value; options of a solver are given as --{name} VALUE")
            value = left.pop(0)
        pairs.append(f"{name.replace('-', '_')}={value}")
    return pairs


def _numbers(option: str, text: str) -> list[int]:
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise ValueError(f"{option}: got {text!r}, need whole numbers such as 3,5 or 0-9") from None
    return found
