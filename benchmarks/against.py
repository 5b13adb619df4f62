"""This tree against another commit: the same members in both, in turn, and what changed beyond the noise.

The other commit is checked out as a git worktree in a temporary folder, which is removed whatever happens.  Both
trees run the benchmark code of *this* tree; where that cannot run on the other package, the other tree runs its own.
Trees take turns, A B B A, so that slow drift of the machine falls on both.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import schema, suite
from .harness import Record

LEAST = 1.01  # a smaller change is not worth a mark
Say = Callable[[str], None]
HEAD = ("member", "point", "program", "other", "this", "other/this", "20-80 %", "")


@dataclass(frozen=True)
class Change:
    """One program at one point: medians, ratio other/this (above 1: this tree is better) with its 20 and 80 %."""

    member: str
    point: str
    program: str
    other: str
    this: str
    ratio: tuple[float, float, float]
    mark: str


def changes(member: suite.Member, other: Sequence[Sequence[Record]], this: Sequence[Sequence[Record]]) -> list[Change]:
    """Compare runs, one list of records per round.

    The range pools the quotients of the quantiles (20, 50, 80 %) of both trees in each round.  A change is marked when
    the range does not hold 1, all of at least two rounds agree on its side, and it is larger than 1 % and than most
    changes of the programs that are not ours: these ran the same code twice, so what they show is the machine.
    """
    flat = [r for run in (*other, *this) for r in run]
    names = iter(schema.labels(flat, member.name))
    found: dict[tuple[str, str], tuple[list[Record], list[Record]]] = {}
    for side, runs in enumerate((other, this)):
        for run in runs:
            for record in run:
                key = (next(names), record.kernel_provider)
                if record.metric_name == member.metric:
                    found.setdefault(key, ([], []))[side].append(record)
    both = {key: pair for key, pair in found.items() if len(pair[0]) == len(pair[1]) == len(other)}
    noise = _machine([_ratios(*pair) for (_, name), pair in both.items() if member.ours and name not in member.ours])
    made = []
    for (point, name), pair in both.items():
        if member.ours and name not in member.ours:
            continue
        middle, low, high = _range(pair)
        sides = {math.copysign(1, math.log(r)) for r in _ratios(*pair) if r != 1}
        moved = abs(math.log(middle)) > max(noise, math.log(LEAST))
        sure = len(other) > 1 and (low > 1 or high < 1) and len(sides) == 1 and moved
        mark = ("better" if middle > 1 else "WORSE") if sure else ""
        made.append(Change(member.name, point, name, _middle(pair[0]), _middle(pair[1]), (middle, low, high), mark))
    return made


def _ratios(other: Sequence[Record], this: Sequence[Record]) -> list[float]:
    return [a.y_value_50 / b.y_value_50 for a, b in zip(other, this, strict=True) if b.y_value_50]


def _range(pair: tuple[list[Record], list[Record]]) -> tuple[float, float, float]:
    pool = []
    for a, b in zip(*pair, strict=True):
        top, bottom = ((r.y_value_20, r.y_value_50, r.y_value_80) for r in (a, b))
        pool += [x / y for x in top for y in bottom if y]
    middle, low, high = np.quantile(pool or [1.0], [0.5, 0.2, 0.8])
    return float(middle), float(low), float(high)


def _machine(rounds: Sequence[Sequence[float]]) -> float:
    """The size that four in five changes of other people's programs stay under, as a logarithm."""
    moved = [abs(math.log(float(np.median(ratios)))) for ratios in rounds if ratios]
    return float(np.quantile(moved, 0.8)) if moved else 0.0


def _middle(records: Sequence[Record]) -> str:
    return f"{float(np.median([r.y_value_50 for r in records])):.4g} {records[0].metric_unit}"


def text(found: Sequence[Change]) -> str:
    """The table."""
    rows = [HEAD]
    for c in found:
        middle, low, high = c.ratio
        spread = f"{low:.2f} - {high:.2f}"
        rows.append((c.member, c.point, c.program, c.other, c.this, f"{middle:.2f}x", spread, c.mark))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


@dataclass(frozen=True)
class Comparison:
    """``run`` measures and prints; ``arguments`` go to every member.  Raises ``ValueError`` if ``revision`` is none."""

    revision: str
    members: Sequence[suite.Member]
    arguments: Sequence[str]
    rounds: int
    limits: bool
    root: Path

    def run(self, say: Say) -> int:
        """Exit code 0, or 1 if a member failed; faster or slower is not a failure."""
        done = _git(self.root, "rev-parse", "--verify", "--quiet", f"{self.revision}^{{commit}}")
        if done.returncode:
            raise ValueError(f"--compare: got {self.revision!r}, need a commit of the git repository {self.root}")
        commit = done.stdout.strip()
        failed = False
        found: list[Change] = []
        with tempfile.TemporaryDirectory(prefix="fastsample-compare-") as name, worktree(self.root, commit, Path(name)):
            folder = Path(name)
            mixed = folder / "mixed"  # the other package under the benchmarks of this tree
            mixed.mkdir()
            (mixed / "benchmarks").symlink_to(self.root / "benchmarks")
            (mixed / "fastsample").symlink_to(folder / "tree" / "fastsample")
            for tree in (self.root, mixed):
                say(f"building what {tree} needs")
                _build(tree)
            for member in self.members:
                try:
                    found += self._member(member, folder, mixed, say)
                except RuntimeError as error:
                    failed = True
                    say(f"{member.name}: {error}")
        say(f"\nother: {commit[:10]} ({self.revision}); this: the working tree; above 1 this tree is better\n")
        say(text(found))
        marked = [c for c in found if c.mark]
        say(f"\n{len(marked)} of {len(found)} changed beyond the noise of {self.rounds} rounds")
        return 1 if failed else 0

    def _member(self, member: suite.Member, folder: Path, mixed: Path, say: Say) -> list[Change]:
        runs: dict[str, list[list[Record]]] = {"other": [], "this": []}
        trees = {"other": mixed, "this": self.root}
        for number in range(self.rounds):
            for side in ("other", "this") if number % 2 == 0 else ("this", "other"):
                out = folder / "runs" / member.name / f"{side}-{number}"
                done = self._run(member, trees[side], out)
                if done.outcome != "ok" and side == "other" and number == 0:
                    say(f"{member.name}: the benchmark of this tree does not run on {self.revision}: its own is used")
                    trees["other"] = folder / "tree"
                    done = self._run(member, trees[side], out / member.name)  # --out was a name without suffix once
                if done.outcome != "ok":
                    raise RuntimeError(f"{side} tree, round {number + 1}: {done.outcome}")
                say(f"{member.name}, round {number + 1} of {self.rounds}, {side}: {done.seconds:.0f} s")
                runs[side].append([r for path in sorted(out.rglob("*.csv")) for r in schema.read_csv(path)])
        return changes(member, runs["other"], runs["this"])

    def _run(self, member: suite.Member, tree: Path, out: Path) -> suite.Outcome:
        out.parent.mkdir(parents=True, exist_ok=True)
        quick, gpu = "--quick" in self.arguments, "--gpu" in self.arguments
        seconds = suite.limit(member, quick, gpu) if self.limits else None
        return suite.run(member, [*self.arguments, "--out", str(out)], seconds, tree, quiet=True)


@contextlib.contextmanager
def worktree(root: Path, commit: str, folder: Path) -> Iterator[Path]:
    """``folder/tree`` at ``commit``, removed at the end, also after Ctrl-C or a polite kill."""
    tree = folder / "tree"
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        done = _git(root, "worktree", "add", "--detach", str(tree), commit)
        if done.returncode:
            raise ValueError(f"git worktree add: {done.stderr.strip()}")
        yield tree
    finally:
        _git(root, "worktree", "remove", "--force", str(tree))
        _git(root, "worktree", "prune")
        signal.signal(signal.SIGTERM, previous)


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)


def _build(tree: Path) -> None:
    """Compile now, so that no member pays for it; what cannot be built is told by the member."""
    code = "from fastsample import native; native.load_for('cpu'); native.load_for('cuda')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True
    )
