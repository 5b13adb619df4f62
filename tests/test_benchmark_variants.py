"""The benchmark of launch variants as far as a machine without a GPU can run it: arguments, the rule, the names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, variants
from benchmarks.harness import Times

CUDA = Path(__file__).parent.parent / "csrc" / "cuda"


def times(*seconds):
    return Times(np.array(seconds), np.arange(len(seconds)))


def point(size, where="stream", dtype="float32", noise=False, **others):
    steady = {name: times(1, 1, 1, 1, 1) for name in variants.SHAPES}
    return variants.Point(dtype, noise, where, size, {**steady, **others})


def test_a_variant_must_be_clearly_faster():
    assert point(8).best() == "strided"
    assert point(8, plain=times(*[0.98] * 5)).best() == "strided"  # by less than 3 %
    assert point(8, plain=times(*[0.9] * 5)).best() == "plain"
    assert point(8, plain=times(*[0.9] * 5), small=times(*[0.8] * 5)).best() == "small"
    assert point(8, plain=times(0.5, 0.5, 0.5, 1.2, 1.2)).best() == "strided"  # not in 80 % of the rounds


def test_neighbouring_sizes_with_one_choice_are_one_line_of_the_rule():
    fast = times(*[0.5] * 5)
    points = [point(8, small=fast), point(32), point(16, small=fast), point(64), point(128, large=fast)]
    points += [point(8, dtype="bfloat16"), point(8, "graph", persistent=fast)]
    assert variants.rule(points) == [
        ("bfloat16", False, "stream", 8, 8, "strided"),
        ("float32", False, "graph", 8, 8, "persistent"),
        ("float32", False, "stream", 8, 16, "small"),
        ("float32", False, "stream", 32, 64, "strided"),
        ("float32", False, "stream", 128, 128, "large"),
    ]
    printed = variants.text(points)
    assert re.search(r"float32 +no +stream +8 to 16 +small\n", printed)
    assert "faster than 'strided' at 4 of 7 points" in printed
    assert "float32 no noise stream 128: large 2.000x (2.000 to 2.000)" in printed


def test_records_are_those_of_the_suite():
    (first, *rest) = variants.records([point(8)], "gpu", "now", "1")
    assert (first.kernel_provider, first.x_value, first.y_value_50) == ("strided", 8, 1000.0)
    assert len(rest) == len(variants.SHAPES) - 1


@pytest.mark.parametrize(("given", "powers"), [("8:12", {8, 9, 10, 11}), ("8,16,24", {8, 16, 24}), ("30", {30})])
def test_sizes(given, powers):
    assert set(variants.parse(["--sizes", given]).sizes) == {2**power for power in powers}


@pytest.mark.parametrize("wrong", [["--sizes", "8:8"], ["--sizes", "1"], ["--sizes", "8,31"], ["--sizes", "x"],
                                   ["--budget", "0"], ["--min-time", "-1"]])  # fmt: skip
def test_arguments_out_of_range(wrong, capsys):
    with pytest.raises(SystemExit):
        variants.parse(wrong)
    assert "allowed are" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--gpu"]])
def test_without_a_gpu_it_says_so(arguments, capsys):
    if torch.cuda.is_available() and arguments:
        pytest.skip("there is a GPU")
    assert variants.main(arguments) == 2
    assert ("no CUDA device" if arguments else "a GPU is needed") in capsys.readouterr().out


def test_a_variant_that_the_library_refuses():
    with pytest.raises(ValueError, match=r"variant 'plain\+early': the library"):
        variants.forced(lambda *_: 0, "plain+early")
    calls = []
    variants.forced(lambda *shape: calls.append(shape) or 1, "plain+early")
    assert calls == [(128, 2048, 1, 1)]


def test_names_and_shapes_are_those_of_the_header():
    text = (CUDA / "variants.h").read_text()
    for name, (threads, fill, turns) in variants.SHAPES.items():
        assert re.search(rf"//   {name} +{threads}, {fill}, {turns}\b", text)
    threads, fill, turns = variants.SHAPES[variants.CHOSEN]
    assert f"kStrided = {{kBlock, {fill}, {turns}, false}}" in text
    assert f"kBlock = {threads};" in (CUDA / "layout.h").read_text()
    assert "fastsample_force_variant" in (CUDA / "update.cu").read_text()


def test_the_gpu_run_measures_them():
    assert "variants" in {stage.name for stage in gpu.stages()}
