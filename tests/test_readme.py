"""The README's example runs as printed."""

from __future__ import annotations

from pathlib import Path

import torch

import fastsample


def test_the_example_runs(capsys):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    small = code.replace("(16, 4, 64, 64)", "(2, 4, 8, 8)")
    assert small != code
    names = {
        "my_unet": lambda x, t: 0.1 * x,
        "net_v": fastsample.Network(lambda x, t, cond: 0.1 * x + cond[:, None, None, None], prediction="v"),
        "labels": torch.ones(2),
        "empty": torch.zeros(2),
    }
    exec(small, names)
    assert names["x"].shape == (2, 4, 8, 8)
    assert "dpmpp-3m" in capsys.readouterr().out
