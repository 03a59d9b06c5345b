"""Exact Gaussian processes against pyro and a dense solve; networks that fit themselves."""

import copy

import numpy as np
import pytest
import torch

from genflow.network import MLP, Fitted, GaussianProcess
from genflow.network import gaussian_process as module
from genflow.specs import build, spec


def problem(n=120, dim=2, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    t = torch.rand(n, generator=draw, dtype=dtype)
    x = torch.randn(n, dim, generator=draw, dtype=dtype)
    return t, x, torch.sin(2 * x) + t[:, None] + torch.randn(n, dim, generator=draw, dtype=dtype) / 5


def dense(t, x, y, at, length=1.0, variance=1.0, noise=1.0):
    """The textbook posterior mean in numpy."""

    def kernel(a, b):
        return variance * np.exp(-np.linalg.norm(a[:, None] - b[None], axis=-1) / length)

    z, w = (np.column_stack([part, clock]) for clock, part in ((t, x), at))
    return kernel(w, z) @ np.linalg.solve(kernel(z, z) + noise * np.eye(len(z)), y.numpy())


settings = pytest.mark.parametrize("length, variance, noise", [(1.0, 50.0, 0.5), (0.7, 2.0, 0.3)])


@settings
def test_posterior_mean_is_that_of_pyro(length, variance, noise):
    pyro, gp = pytest.importorskip("pyro"), pytest.importorskip("pyro.contrib.gp")
    pyro.clear_param_store()  # kernels of the same name share their numbers
    t, x, y = problem()
    new_t, new_x, _ = problem(n=40)
    kernel = gp.kernels.Exponential(3, torch.tensor(variance).double(), torch.tensor(length).double())
    z, w = torch.cat([x, t[:, None]], 1), torch.cat([new_x, new_t[:, None]], 1)
    peer = gp.models.GPRegression(z, y.T, kernel, torch.tensor(noise).double(), jitter=1e-6)
    with torch.no_grad():
        expected, _ = peer(w)
    ours = GaussianProcess(2, length, variance, noise, jitter=1e-6).fit(t, x, y)
    # pyro adds 1e-12 to squared distances, 1e-6 to that of a row from itself
    torch.testing.assert_close(ours(new_t, new_x), expected.T, rtol=0, atol=2e-6)
    pyro.clear_param_store()


@settings
def test_posterior_mean_is_that_of_a_dense_solve(length, variance, noise):
    t, x, y = problem()
    at = problem(n=600)[:2]  # several blocks of rows
    ours = GaussianProcess(2, length, variance, noise, jitter=0).fit(t, x, y)(*at).numpy()
    expected = dense(t, x, y, at, length, variance, noise)
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-8)
    for wrong in (
        dense(t, x, y, at, length, variance, 2 * noise),
        dense(t, x, y, at, length, 2 * variance, noise),
        dense(t, x, y, at, 1.1 * length, variance, noise),
        dense(0 * t, x, y, (0 * at[0], at[1]), length, variance, noise),
    ):
        assert np.abs(wrong - expected).max() > 1e-2


def test_a_drift_fit_of_thousands_of_rows_is_solved_to_ten_digits():
    """The published scale: paths of close rows, noise a hundredth of the variance."""
    draw = torch.Generator().manual_seed(0)
    path = torch.randn(60, 25, 2, generator=draw, dtype=torch.float64).cumsum(0) / 10
    t = torch.linspace(0, 2, 60, dtype=torch.float64).repeat_interleave(25)
    x = path.flatten(0, 1)
    y = torch.randn(len(x), 2, generator=draw, dtype=torch.float64)
    ours = GaussianProcess(2, variance=50.0, noise=0.5, jitter=0).fit(t, x, y)
    z = np.column_stack([x, t])
    matrix = np.exp(-np.linalg.norm(z[:, None] - z[None], axis=-1)) + 0.01 * np.eye(len(z))
    left = matrix @ ours.weights.numpy() - y.numpy()
    assert np.linalg.norm(left) < 2e-10 * np.linalg.norm(y.numpy())


def test_a_matrix_too_hard_for_single_precision_falls_back(monkeypatch):
    t, x, y = problem()
    x = torch.cat([x, x + 1e-7])
    t, y = t.repeat(2), y.repeat(2, 1)
    seen = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(
        module.torch.linalg, "cholesky_ex", lambda m: (seen.append(m.dtype), cholesky(m))[1]
    )
    at = problem(n=40)[:2]
    ours = GaussianProcess(2, noise=1e-8, jitter=0).fit(t, x, y)(*at)
    assert torch.float64 in seen
    np.testing.assert_allclose(ours.numpy(), dense(t, x, y, at, noise=1e-8), rtol=1e-5, atol=1e-5)


def test_the_preconditioner_is_the_inverse_for_one_block_or_a_chain():
    """A Markov chain on the line has exponential covariances: blocks need the one before alone."""
    t = torch.linspace(0, 5, 60, dtype=torch.float64)
    y = problem(60)[2]
    line = torch.exp(-(t[:, None] - t).abs())
    plane = module.kernel(problem(60)[1], problem(60)[1]) + 0.01 * torch.eye(60)
    for matrix, block, exact in ((plane, 60, True), (line, 16, True), (plane, 16, False)):
        found = module.rough_inverse(matrix, block)(y.float()).double()
        expected = torch.linalg.solve(matrix, y)
        assert ((found - expected).norm() < 1e-4 * expected.norm()) == exact
        solved = module.conjugate_gradients(matrix, module.rough_inverse(matrix, block), y)
        torch.testing.assert_close(solved, expected, rtol=1e-7, atol=1e-7)


def test_what_single_precision_cannot_do_is_left_to_double():
    rows = torch.ones(10, 2, dtype=torch.float64)
    assert module.rough_inverse(module.kernel(rows, rows)) is None
    hard = torch.diag(torch.logspace(0, 12, 100, dtype=torch.float64))
    assert module.conjugate_gradients(hard, lambda y: y, problem(100)[2]) is None


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_may_come_in_any_order(shuffled, monkeypatch):
    monkeypatch.setattr(module.rough_inverse, "__defaults__", (30,))
    t, x, y = problem()
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0)) if shuffled else t.argsort()
    at = problem(40)[:2]
    ours = GaussianProcess(2, noise=0.01, jitter=0).fit(t[order], x[order], y[order])(*at)
    np.testing.assert_allclose(ours.numpy(), dense(t, x, y, at, noise=0.01), rtol=1e-8, atol=1e-8)


def test_rows_of_zero_targets_do_not_break_the_solve():
    t, x, y = problem()
    y[:, 1] = 0
    out = GaussianProcess(2).fit(t, x, y)(t, x)
    assert out.isfinite().all() and (out[:, 1] == 0).all() and out[:, 0].abs().max() > 0.1


def test_the_mean_returns_to_zero_far_away_and_to_the_targets_without_noise():
    t, x, y = problem()
    gp = GaussianProcess(2, noise=1e-10, jitter=0).fit(t, x, y)
    torch.testing.assert_close(gp(t, x), y, rtol=1e-6, atol=1e-6)
    assert gp(0.5, x + 100).abs().max() < 1e-30


def test_increments_settle_what_was_left_open():
    published = GaussianProcess(2).for_increments(sigma=0.1, dt=0.02)
    assert (published.variance, published.noise) == pytest.approx((50, 0.5))
    stated = GaussianProcess(2, 3.0, variance=4.0, noise=5.0).for_increments(0.1, 0.02)
    assert (stated.length, stated.variance, stated.noise) == (3.0, 4.0, 5.0)
    t, x, y = problem()
    one = published.fit(t, x, y)(t, x)
    torch.testing.assert_close(one, GaussianProcess(2, noise=0.01, jitter=2e-8).fit(t, x, y)(t, x))


def test_precision_in_is_precision_out():
    t, x, y = problem()
    gp = GaussianProcess(2).fit(t.float(), x.float(), y.float())
    out = gp(t.float(), x.float())
    assert out.dtype == torch.float32 and gp.weights.dtype == torch.float64
    torch.testing.assert_close(
        out.double(), GaussianProcess(2).fit(t, x, y)(t, x), rtol=1e-5, atol=1e-5
    )
    assert gp(0.5, x[:0]).shape == (0, 2)


def test_a_fit_travels_in_a_state_dict_and_a_spec():
    t, x, y = problem()
    gp = GaussianProcess(2, noise=0.3).fit(t, x, y)
    numbers = {"dim": 2, "length": 1.0, "variance": None, "noise": 0.3, "jitter": 1e-6}
    assert spec(gp) == {"_target_": "genflow.network.GaussianProcess", **numbers}
    fresh = build(spec(gp))
    fresh.load_state_dict(gp.state_dict())
    assert torch.equal(fresh(t, x), gp(t, x))
    fresh.load_state_dict(GaussianProcess(2).state_dict())
    with pytest.raises(ValueError, match="call fit"):
        fresh(t, x)
    with pytest.raises(RuntimeError, match="size mismatch"):
        GaussianProcess(3).load_state_dict(gp.state_dict())


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(dim=0), "dim must be a whole number"),
        (dict(length=-1.0), "length must be positive"),
        (dict(variance=0.0), "variance must be positive"),
        (dict(noise=-1.0), "noise must be zero or positive"),
        (dict(jitter=float("nan")), "jitter must be a finite number"),
    ],
)
def test_bad_numbers_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        GaussianProcess(**(dict(dim=2) | change))


def test_bad_rows_are_refused():
    t, x, y = problem()
    with pytest.raises(ValueError, match="both must be"):
        GaussianProcess(2).fit(t, x, y[:5])
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\)"):
        GaussianProcess(3).fit(t, x, y)
    with pytest.raises(ValueError, match="not positive definite; raise noise"):
        GaussianProcess(2, noise=0, jitter=0).fit(t.repeat(2), x.repeat(2, 1), y.repeat(2, 1))
    with pytest.raises(ValueError, match="leave out rows that are NaN"):
        GaussianProcess(2).fit(t, x * float("nan"), y)


# ----------------------------------------------------------------- networks


class Affine(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(3, 2), torch.nn.Dropout(dropout)

    def forward(self, t, x):
        return self.linear(self.dropout(torch.cat([x, t[:, None]], 1)))


def test_a_network_is_fitted_to_the_least_squares_solution():
    t, x, y = problem()
    fitted = Fitted(Affine().double(), steps=1000, lr=0.03)
    with torch.no_grad():
        fitted.fit(t, x, y)
    z = np.column_stack([x, t, np.ones(len(x))])
    expected = z @ np.linalg.lstsq(z, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(fitted(t, x).detach().numpy(), expected, atol=1e-6)


def test_a_fit_keeps_precision_and_starts_from_the_weights():
    t, x, y = problem()
    torch.manual_seed(0)
    fitted = Fitted(MLP(2, width=16, depth=1), steps=30)
    first = copy.deepcopy(fitted).fit(t, x, y)
    assert first(t, x).dtype == torch.float64 and not first.network.training
    assert (first(t, x) - y).square().mean() < (fitted(t, x) - y).square().mean()
    again = copy.deepcopy(first).fit(t, x, y)
    assert (again(t, x) - y).square().mean() < (first(t, x) - y).square().mean()
    assert torch.equal(first(0.5, x), first(torch.full_like(t, 0.5), x))


def test_layers_that_draw_are_seeded_and_the_callers_draws_are_left_alone():
    t, x, y = problem()
    torch.manual_seed(5)
    network, expected = Fitted(Affine(dropout=0.5), steps=5), torch.rand(1)
    other = copy.deepcopy(network)
    torch.manual_seed(5)
    Affine(), network.fit(t, x, y)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(other.fit(t, x, y)(t, x), network(t, x))
    assert not torch.equal(Fitted(Affine(0.5), 5, seed=1).fit(t, x, y)(t, x), network(t, x))


def test_fits_without_a_finite_error_are_refused():
    t, x, y = problem()
    with pytest.raises(ValueError, match="use a smaller lr"):
        Fitted(Affine(), steps=3).fit(t, x, y * float("nan"))
    with pytest.raises(ValueError, match="both must be"):
        Fitted(Affine()).fit(t, x, y[:3])
    with pytest.raises(ValueError, match="steps must be"):
        Fitted(Affine(), steps=0)
    with pytest.raises(ValueError, match="lr must be positive"):
        Fitted(Affine(), lr=0.0)
