from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

from fastsample.path import Level, Path, step_size


def some_path(n=5, **options):
    lam = np.linspace(-2.0, 3.0, n + 1)
    return Path(
        1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)), np.linspace(1, 0.1, n + 1), **options
    )


def test_levels_and_log_snr():
    path = Path([0.0, 0.5, 1.0], [1.0, 0.5, 0.0], [1.0, 0.5, 0.0])
    assert path.steps == 2
    assert len(path) == 3
    np.testing.assert_array_equal(path.lam, [-math.inf, 0.0, math.inf])
    np.testing.assert_array_equal(path.rho, [math.inf, 1.0, 0.0])
    assert path[1] == Level(0.5, 0.5, 0.5)
    assert path.levels() == (path[0], path[1], path[2])
    assert path[0].lam == -math.inf
    assert path[2].lam == math.inf


def test_t_defaults_to_sigma_over_alpha():
    path = Path([0.5, 1.0], [2.0, 0.0])
    np.testing.assert_array_equal(path.t, [4.0, 0.0])


def test_is_immutable_and_has_its_own_copy():
    alpha = np.array([0.1, 0.9])
    path = Path(alpha, [0.9, 0.1])
    alpha[0] = 7.0
    assert path.alpha[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        path.sigma[0] = 1.0
    with pytest.raises(AttributeError):
        path.alpha = alpha


def test_slices_are_paths():
    path = some_path()
    assert path[2:].steps == 3
    assert path[2:][0] == path[2]
    assert path[1:4] == Path(path.alpha[1:4], path.sigma[1:4], path.t[1:4])
    with pytest.raises(ValueError, match="at least 2"):
        path[5:]
    with pytest.raises(ValueError, match="step 1"):
        path[::2]


def test_reversed_twice_is_the_same():
    path = some_path(rates=np.ones((6, 2)))
    back = path.reversed()
    assert back.reverse
    assert (np.diff(back.lam) < 0).all()
    assert back.reversed() == path
    assert back != path


def test_ve_keeps_the_log_snr():
    path = some_path()
    assert (path.ve().alpha == 1).all()
    np.testing.assert_allclose(path.ve().lam, path.lam, atol=1e-15)
    with pytest.raises(ValueError, match="alpha"):
        Path([0.0, 1.0], [1.0, 0.5], [1.0, 0.0]).ve()


def test_equality_hash_pickle_copy():
    path = some_path()
    for other in (some_path(), pickle.loads(pickle.dumps(path)), copy.deepcopy(path)):
        assert other == path
        assert hash(other) == hash(path)
    assert path != some_path(4)
    assert path != "path"


def test_repeated_levels_are_allowed():
    assert Path([1, 1, 1], [2, 1, 1]).steps == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], [1.0]), ValueError, "alpha: got 1 level"),
        (([1, 1], [2, 1, 0.5]), ValueError, "sigma: got 3 levels"),
        (([1, 1], [2, 1], [1, 2, 3]), ValueError, "t: got 3 times"),
        (([1, math.nan], [2, 1]), ValueError, "alpha: got a value that is not finite"),
        (([1, 1], [math.inf, 1]), ValueError, "sigma: got a value that is not finite"),
        (([1, 1], [-2, 1]), ValueError, "sigma: got -2.0"),
        (([1, 1], [1, 2]), ValueError, "must rise along the path.*level 0 to 1"),
        (([1, 1], [2, 1], None, None, True), ValueError, "must fall along the path"),
        (([1, 1, 1], [2, 0, 0]), ValueError, "sigma: is 0 at level 1"),
        (([0, 0, 1], [2, 1, 0], [2, 1, 0]), ValueError, "alpha: is 0 at level 0"),
        (([0, 1], [0, 1], [1, 0]), ValueError, "sigma: is 0 at level 0"),
        (([0, 1], [1, 0]), ValueError, "t: must be given"),
        (([[1, 1]], [[2, 1]]), ValueError, r"alpha: got shape \(1, 2\)"),
        (("ab", [2, 1]), TypeError, "alpha: got str"),
        (([1, 1], [2, 1], None, [[1, 2]]), ValueError, "rates: got shape"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        Path(*arguments)


def test_step_size_keeps_digits_of_close_levels():
    start = Level(0.6, 0.8, 0.0)
    end = Level(0.6 * (1 + 1e-9), 0.8 * (1 - 1e-9), 0.0)
    exact = math.log1p((end.alpha - start.alpha) / start.alpha) - math.log1p((end.sigma - start.sigma) / start.sigma)
    assert step_size(start, end) == pytest.approx(exact, rel=1e-6)
    assert step_size(start, Level(1.0, 0.0, 0.0)) == math.inf
    assert step_size(Level(0.0, 1.0, 1.0), start) == math.inf
