"""Iterative proportional fitting as functions: grids, ends of increments, the bridge of Gaussians."""

import math

import pytest
import torch

from genflow.network import GaussianProcess
from genflow.process.multimarginal import ipf as module
from genflow.process.multimarginal.ipf import clock, ipf, regress, simulate, stitched


def still(t, x):
    return torch.zeros_like(x)


class AffineByStep:
    """Least squares on (1, x) at every time: what the bridge between Gaussians needs, no more."""

    def fit(self, t, x, y):
        self.times, which = t.unique(return_inverse=True)
        ones = torch.ones(len(x), 1, dtype=x.dtype)
        rows = [(torch.cat([ones, x], 1)[which == k], y[which == k]) for k in range(len(self.times))]
        self.weights = torch.stack([torch.linalg.lstsq(a, b).solution for a, b in rows])

    def __call__(self, t, x):
        weights = self.weights[(self.times - t).abs().argmin()]
        return weights[0] + x @ weights[1:]


class Recorder:
    """Keeps what it was fitted to."""

    def fit(self, t, x, y):
        self.rows = t, x, y


@pytest.mark.parametrize(
    "start, stop, dt, steps", [(0, 2, 0.02, 100), (1.5, 3, 0.01, 150), (0, 1, 0.3, 4), (2, 2.1, 0.5, 1)]
)
def test_a_clock_has_the_fewest_equal_steps_that_are_no_longer_than_dt(start, stop, dt, steps):
    times = clock(start, stop, dt)
    assert len(times) == steps + 1 and times.dtype == torch.float64
    assert (times[0], times[-1]) == (start, stop)
    torch.testing.assert_close(times.diff(), times.diff()[:1].expand(steps))


def test_simulated_moments(generator):
    """Of dX = -X dt + sigma dW by Euler steps: the recursion of its moments."""
    x, times = torch.full((20000, 1), 2.0, dtype=torch.float64), clock(0, 1, 0.1)
    path = simulate(lambda t, x: -x, x, times, 0.5, generator)
    mean, var = 2.0, 0.0
    for _ in range(10):
        mean, var = 0.9 * mean, 0.81 * var + 0.25 * 0.1
    assert path.shape == (11, 20000, 1)
    assert path[-1].mean().item() == pytest.approx(mean, abs=4 * math.sqrt(var / 20000))
    assert path[-1].var().item() == pytest.approx(var, rel=4 * math.sqrt(2 / 20000))


def test_increments_sit_at_the_right_ends_of_a_reversed_path(generator):
    times = clock(1.0, 2.0, 0.25)
    path = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64)
    t, x, y = regress(Recorder(), times, path.flip(0)).rows
    for s in range(4):
        for i in range(3):
            row = 3 * s + i
            assert t[row] == times[s]  # the clock is not reversed
            assert torch.equal(x[row], path[4 - s, i])
            torch.testing.assert_close(y[row], (path[3 - s, i] - path[4 - s, i]) / 0.25)
    wrong = (path[1:] - path[:-1]).flip(0) / 0.25  # the sign of the direction that was simulated
    assert not torch.allclose(y.view(4, 3, 2), wrong)


def test_templates_are_copied():
    template = Recorder()
    fitted = regress(template, clock(0, 1, 0.5), torch.zeros(3, 2, 1))
    assert fitted is not template and not hasattr(template, "rows")


def gaussian_bridge(generator, n=4000):
    """End mean, end variance and covariance with the start, of forward paths after six iterations."""
    x0 = 1 + 0.7 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x1 = 3 + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    halves = ipf(x0, x1, (1.0, 2.5), still, AffineByStep(), 0.6, 0.05, 6, generator)
    assert torch.equal(halves.path[0], x0) and len(halves.times) == 31
    ends = torch.cat([halves.path[0], halves.path[-1]], 1)
    return ends[:, 1].mean().item(), *torch.cov(ends.T)[1].tolist()[::-1]


def closed_form():
    """Of the entropic plan: with e = sigma^2 Delta, c = sqrt(s0^2 s1^2 + e^2 / 4) - e / 2."""
    epsilon = 0.36 * 1.5
    return 3.0, 0.25, math.sqrt(0.49 * 0.25 + epsilon**2 / 4) - epsilon / 2


def test_the_bridge_of_gaussians(generator):
    """Four standard errors of 4000 rows, and the bias of 30 Euler steps."""
    mean, var, cov = gaussian_bridge(generator)
    true_mean, true_var, true_cov = closed_form()
    assert mean == pytest.approx(true_mean, abs=0.04)
    assert var == pytest.approx(true_var, abs=0.025)
    assert cov == pytest.approx(true_cov, abs=0.025)


def test_increments_at_the_wrong_end_are_another_bridge(generator, monkeypatch):
    def wrong(regressor, times, path):
        fitted = type(regressor)()
        speed = (path.diff(dim=0) / times.diff()[:, None, None]).flatten(0, 1)
        fitted.fit(times[:-1].repeat_interleave(path.shape[1]), path[1:].flatten(0, 1), speed)
        return fitted

    monkeypatch.setattr(module, "regress", wrong)
    try:
        mean, var, cov = gaussian_bridge(generator)
    except ValueError:  # it may also run away
        return
    true_mean, true_var, true_cov = closed_form()
    assert (
        max(abs(mean - true_mean) / 0.04, abs(var - true_var) / 0.025, abs(cov - true_cov) / 0.025) > 3
    )


def test_gaussian_processes_reach_far_snapshots(generator):
    """Ten standard deviations of the noise away, where no path of the reference comes."""
    draw = {"generator": generator, "dtype": torch.float64}
    x0 = 0.1 * torch.randn(12, 2, **draw)
    x1 = torch.tensor([1.2, -0.8]) + 0.1 * torch.randn(10, 2, **draw)
    template = GaussianProcess(2).for_increments(0.1, 0.04)
    halves = ipf(x0, x1, (0.0, 2.0), still, template, 0.1, 0.04, 10, generator)
    assert (halves.path[-1].mean(0) - x1.mean(0)).norm() < 0.1
    back = simulate(halves.backward, x1, halves.times, 0.1, generator)
    assert (back[-1].mean(0) - x0.mean(0)).norm() < 0.2
    with torch.no_grad():
        plain = simulate(halves.forward, x0, halves.times, 0.0)[-1].mean(0)
    assert (plain - x1.mean(0)).norm() < 0.2 and (x0.mean(0) - x1.mean(0)).norm() > 1.2


def test_the_same_generator_gives_the_same_drifts(generator):
    x0, x1 = torch.randn(2, 8, 2, generator=generator)
    run = [
        ipf(
            x0, x1 + 1, (0, 1), still, GaussianProcess(2), 0.5, 0.1, 2, torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    ]
    assert torch.equal(run[0].path, run[1].path) and run[0].path.dtype == torch.float64
    assert torch.equal(run[0].backward.weights, run[1].backward.weights)


def test_the_reference_enters_through_the_first_simulation_alone(generator):
    calls = []
    x0, x1 = torch.randn(2, 5, 2, generator=generator)

    def reference(t, x):
        calls.append(t)
        return still(t, x)

    ipf(x0, x1, (0, 1), reference, GaussianProcess(2), 0.5, 0.1, 3, generator)
    assert calls == clock(0, 1, 0.1)[:-1].tolist()


def test_paths_that_run_away_are_refused_by_name(generator):
    x0, x1 = torch.randn(2, 5, 2, generator=generator)
    with pytest.raises(ValueError, match=r"between t=0 and t=1: paths of the reference are not finite"):
        ipf(x0, x1, (0, 1), lambda t, x: x / 0, GaussianProcess(2), 0.5, 0.1, 3, generator)


def test_stitched_paths_follow_both_drifts_on_their_clocks(generator):
    """Without noise and with drift cos t each path is sin t through its own row, up to Euler's."""
    grids = [torch.linspace(0, 1, 2001).double() ** 2, torch.linspace(1, 3, 3001).double()]
    xs = [torch.randn(n, 2, generator=generator) for n in (3, 2, 4)]

    def backward(k):
        first, last = grids[k][0], grids[k][-1]
        return lambda t, x: torch.zeros_like(x) - torch.cos(first + last - t)

    paths = stitched(
        xs, grids, [lambda t, x: torch.zeros_like(x) + math.cos(t)] * 2, [backward(0), backward(1)], 0.0
    )
    times = torch.cat([grids[0], grids[1][1:]])
    assert paths.shape == (5001, 9, 2) and paths.dtype == torch.float64
    at, rows = [0, 2000, 5000], torch.arange(9).split([3, 2, 4])
    for k in range(3):
        assert torch.equal(paths[at[k], rows[k]], xs[k].double())
        expected = xs[k].double() + (times.sin() - times[at[k]].sin())[:, None, None]
        torch.testing.assert_close(paths[:, rows[k]], expected, atol=2e-3, rtol=0)


def test_stitched_noise_is_that_of_the_process(generator):
    xs = [torch.zeros(3000, 1)] * 3
    grids = [clock(0, 1, 0.25), clock(1, 4, 0.5)]
    paths = stitched(xs, grids, [still] * 2, [still] * 2, 0.3, generator)
    away = torch.tensor([0.0, 1.0, 4.0])
    for k, rows in enumerate(paths.split(3000, 1)):
        expected = 0.09 * (away - away[k]).abs()
        torch.testing.assert_close(
            rows[[0, 4, 10]].var(1).flatten().float(), expected, rtol=0.11, atol=1e-12
        )
