"""The benchmark suite as one command: run members, write the page, compare with another commit."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from . import page, schema, suite

CHECKS = ("test_update.py", "test_noise.py", "test_plan.py", "test_loop.py")  # about half a minute on one core


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--quick", is_flag=True, help="Under 5 minutes on 2 cores; results go to out/benchmarks.")
@click.option("--full", is_flag=True, help="With --compare: the full members, not the quick ones.")
@click.option("--gpu", is_flag=True, help="On device cuda.")
@click.option("--only", multiple=True, metavar="NAME ...", help="These members only; names may follow, or commas.")
@click.argument("names", nargs=-1, metavar="")
@click.option("--list", "show", is_flag=True, help="The members, their usual seconds, and what they measure.")
@click.option("--page", "only_page", is_flag=True, help="Only write the page and the pictures from the results.")
@click.option(
    "--compare", "revision", metavar="REV", help="This tree against another commit, member by member, in turn."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="With --compare: runs of each tree."
)
@click.option("--check", is_flag=True, help="First run a few tests; no figures if they fail.")
@click.option("--threads", type=click.IntRange(1), help="Of torch; by default one per core.")
@click.option("--limits/--no-limits", default=True, help="End a member that takes 5 times its time.")
@click.option("--note", default="", help="Kept with the results, such as what else runs on the machine.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results [benchmarks/results].")
def cli(
    quick: bool, full: bool, gpu: bool, only: Sequence[str], names: Sequence[str], show: bool, only_page: bool,
    revision: str | None, rounds: int, check: bool, threads: int | None, limits: bool, note: str, out: Path | None,
) -> int:  # fmt: skip
    """Benchmarks of fastsample.

    Without options: all members, full, under 25 minutes on 2 cores; results in benchmarks/results, and the page
    docs/benchmarks.md. Keep the machine idle.
    """
    if names and not only:
        raise click.UsageError(f"got {', '.join(names)}: names of members come after --only")
    chosen = [name for text in (*only, *names) for name in text.split(",") if name]
    try:
        members = suite.find(chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if show:
        for m in members:
            click.echo(
                f"{m.name:12} quick {m.quick:3g} s, full {m.full:3g} s, gpu {m.gpu:3g} s  {m.about.split(': ')[0]}"
            )
        return 0
    folder = out or (suite.ROOT / "out" / "benchmarks" if quick else _results())
    if only_page:
        return _page(folder, pictures=True)
    if check and not _tests_pass():
        return 1
    shared = [*(["--gpu"] if gpu else []), *(["--threads", str(threads)] if threads else [])]
    if revision is not None:
        from .against import Comparison

        arguments = [*([] if full else ["--quick"]), *shared]
        try:
            return Comparison(revision, members, arguments, rounds, limits, suite.ROOT).run(click.echo)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    if gpu:
        import torch

        if not torch.cuda.is_available():
            raise click.UsageError("--gpu: torch finds no CUDA device here")
        members = [m for m in members if m.gpu]
    arguments = [*(["--quick"] if quick else []), *shared, "--note", note, "--out", str(folder.resolve())]
    outcomes = []
    for member in members:
        seconds = suite.limit(member, quick, gpu) if limits else None
        click.echo(f"\n== {member.name}" + (f", at most {seconds:g} s" if seconds else ""))
        if why := suite.missing(member):
            outcomes.append(suite.Outcome(member.name, f"skipped: {why}", 0.0))
            continue
        outcomes.append(suite.run(member, arguments, seconds, suite.ROOT))
    _page(folder)
    click.echo(f"\n{'member':12} {'seconds':>8}  outcome")
    for done in outcomes:
        click.echo(f"{done.name:12} {done.seconds:8.0f}  {done.outcome}")
    click.echo(f"{'all':12} {sum(done.seconds for done in outcomes):8.0f}")
    return 0 if all(done.outcome.startswith(("ok", "skipped")) for done in outcomes) else 1


def _results() -> Path:
    return suite.ROOT / "benchmarks" / "results"


def _page(folder: Path, pictures: bool = False) -> int:
    """The page of these results: docs/benchmarks.md of the repository's own, else beside them."""
    own = folder.resolve() == _results().resolve()
    where = suite.ROOT / "docs" / "benchmarks.md" if own else folder / "benchmarks.md"
    if pictures:
        from .member import draw

        for found in schema.load(folder):
            plot = getattr(importlib.import_module(f"benchmarks.{found.member}"), "plot", None)
            if plot is not None:
                draw(plot, found.records, found.path.with_suffix(".png"))
    page.write(folder, where)
    click.echo(f"\nwritten: {where}")
    return 0


def _tests_pass() -> bool:
    tests = [str(suite.ROOT / "tests" / name) for name in CHECKS]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *tests], cwd=suite.ROOT)
    if done.returncode:
        click.echo("no figures: the tests of this tree fail", err=True)
    return done.returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command (``sys.argv`` if None); exit code 0, 1 if a member or a test failed, 2 for a mistake."""
    try:
        result = cli.main(
            args=None if argv is None else list(argv), prog_name="python -m benchmarks", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130


if __name__ == "__main__":
    sys.exit(main())
