"""Paths of light bridges: exact steps, exact paths, and solvers of the equation."""

import itertools

import pytest
import torch
from laws import moment_scores
from lights import FAMILIES, double, light, states

from genflow.solver import Euler, StochasticHeun

every_family = pytest.mark.parametrize("family", FAMILIES)


def close(found, want, tolerance=1e-9):
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


@every_family
def test_many_steps_have_the_law_of_one(family, generator):
    made, _ = light(family)
    x0 = states(3, 1).expand(20_000, 3)
    once, x = made.transition(0.0, 0.9, x0, generator), x0
    path = made.sample_path(x0, [0.0, 0.2, 0.5, 0.9, 1.0], generator)
    assert torch.equal(path[0], x0) and path.shape == (5, 20_000, 3)
    for k, (s, t) in enumerate(itertools.pairwise([0.0, 0.2, 0.5, 0.9, 1.0])):
        last, x = x, made.transition(s, t, x, generator)
        if k == 0:
            assert moment_scores(x, path[1]) < 4.5
            continue  # the joint law with the step before, of steps and of paths
        assert moment_scores(torch.cat([last, x], 1), torch.cat([path[k], path[k + 1]], 1)) < 4.5
        assert t != 0.9 or moment_scores(x, once) < 4.5
    at = made.sample_at(x0, 0.5, generator)
    assert moment_scores(at, path[2]) < 4.5 and moment_scores(at, path[3]) > 8
    assert torch.equal(made.sample_at(x0, 0.0), x0)
    assert not made.sample_path(states(3, 2).requires_grad_(), [0.5, 1.0]).requires_grad


def test_paths_have_the_ends_that_they_are_given(generator):
    made, _ = light("full")
    x0, x1 = states(3, 30_000), states(3, 30_000, 9)
    path = made.sample_path(x0, torch.tensor([0.25, 0.6, 1.0]), generator, x1=x1)
    close(path[-1], x1, 1e-12)
    for k, t in ((0, 0.25), (1, 0.6)):
        free = (path[k] - (1 - t) * x0 - t * x1) / (made.epsilon * t * (1 - t)) ** 0.5
        assert moment_scores(free, torch.randn(30_000, 3, generator=generator, dtype=double)) < 4.5
    # of a Brownian bridge, Cov(x_s, x_t) = epsilon s (1 - t)
    each = (path[0] - 0.75 * x0 - 0.25 * x1) * (path[1] - 0.4 * x0 - 0.6 * x1)
    score = (each.mean() - made.epsilon * 0.25 * 0.4) / (each.std() / each.numel() ** 0.5)
    assert abs(float(score)) < 4.5


@pytest.mark.parametrize("family", ["diagonal", "full"])
@torch.no_grad()
def test_solvers_of_the_sde_converge_to_the_exact_law(family, generator):
    made, _ = light(family)
    x0 = states(3, 1).expand(6000, 3)
    for solver in (Euler(200), StochasticHeun(40)):
        times = torch.linspace(0, 1, solver.steps + 1)
        path = solver.solve(made, x0, times, generator=generator, trajectory=True).trajectory
        for t in (0.5, 1.0):
            found = path[round(t * solver.steps)]
            assert moment_scores(found, made.sample_at(x0, t, generator)) < 4.5
    coarse = Euler(2).solve(made, x0, generator=generator).x
    assert moment_scores(coarse, made.plan(x0).sample(generator=generator)) > 6


def test_rows_may_stay_where_they_are():
    made, _ = light("diagonal")
    x0 = states(3, 4)
    found = made.sample_at(x0, torch.tensor([0.0, 0.5, 1.0, 0.0], dtype=double))
    close(found[[0, 3]], x0[[0, 3]], 0)
    assert (found[1:3] - x0[1:3]).abs().min() > 0
    close(made.transition(0.5, 0.5, x0), x0, 0)
    made.anchor(x0)
    s, t = (torch.tensor(v, dtype=double) for v in ([0.5, 0.5, 1.0, 0.7], [0.5, 0.2, 1.0, 0.7]))
    back = made.transition(s, t, x0)
    close(back[[0, 2, 3]], x0[[0, 2, 3]])
    assert (back[1] - x0[1]).abs().min() > 0
    with pytest.raises(ValueError, match="all rows must run forward, or all backward"):
        made.transition(s, torch.tensor([0.4, 0.9, 1.0, 0.7]), x0)
