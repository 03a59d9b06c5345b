"""Generator: sizes, batches, options, and data units on either side of the transform."""

import pytest
import torch
from fields import Affine, Still

from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Adaptive, Euler, Heun, StochasticHeun
from genflow.source import Empirical, Gaussian, Moons
from genflow.transform import Standardise

MATRIX = [[-1.0, 3.0], [-2.0, 0.5]]


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def affine(sigma=0.0, solver=None, source=None):
    return Generator(source or Gaussian(2), SDE(Affine(MATRIX), sigma), solver or Euler(10))


def data(n=200, seed=0):
    return 5 + 3 * torch.randn(n, 2, generator=seeded(seed))


def still(source, x0=None):
    """A model that moves nothing: only the transform acts."""
    model = Generator(source, SDE(Still()), Euler(4), Standardise(2))
    return model.prepare(data(seed=1) if x0 is None else x0, data())


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_samples_have_the_shape_of_the_source(shape):
    model = Generator(Gaussian(shape), SDE(MLP(shape, 8)), Euler(5), Standardise(shape))
    assert model.sample(3).shape == (3, *shape)
    assert model.sample(3, trajectory=True).shape == (6, 3, *shape)
    assert not model.sample(3).requires_grad


def test_sizes_default_to_what_is_given():
    model = affine()
    assert len(model.sample(x0=torch.zeros(4, 2))) == 4
    assert len(model.sample(cond=torch.zeros(5))) == 5
    assert len(model.sample(4, x0=torch.zeros(4, 2), cond=torch.zeros(4))) == 4


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "needs n, x0 or cond"),
        ({"n": 5, "x0": torch.zeros(4, 2)}, r"n = 5, len\(x0\) = 4"),
        ({"n": 5, "cond": torch.zeros(4)}, r"n = 5, len\(cond\) = 4"),
        ({"x0": torch.zeros(5, 2), "cond": torch.zeros(4)}, r"len\(x0\) = 5, len\(cond\) = 4"),
        ({"n": 0}, "n must be a whole number >= 1"),
        ({"n": -3}, "n must be a whole number >= 1"),
        ({"n": 2.5}, "n must be a whole number >= 1"),
        ({"n": True}, "n must be a whole number >= 1"),
        ({"n": 3, "reverse": True}, "pass them as x0="),
        ({"n": 3, "steps": 5, "times": [0.0, 1.0]}, "steps or times, not both"),
        ({"n": 3, "steps": 0}, "steps must be a whole number"),
        ({"n": 3, "batch_size": 0}, "batch_size must be a whole number"),
        ({"n": 3, "batch_size": 1.5}, "batch_size must be a whole number"),
        ({"n": 3, "epsilon": 0.1}, "leave epsilon out"),
        ({"n": 3, "solver": "euler"}, "solver must be a solver"),
        ({"n": 3, "times": [0.0, 2.0]}, "outside the process's span"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        affine().sample(**options)


def test_a_noisy_process_refuses_what_needs_an_ode():
    with pytest.raises(ValueError, match="cannot run backwards"):
        affine(0.5).sample(x0=torch.zeros(3, 2), reverse=True)
    with pytest.raises(ValueError, match="is for ODEs"):
        affine(0.5).sample(3, solver=Heun())


@pytest.mark.parametrize("solver", [Euler(10), Heun(10), StochasticHeun(10)])
def test_batches_give_the_samples_of_one_batch(solver):
    model = affine(solver=solver)
    whole = model.solve(10, generator=seeded(), trajectory=True, cond=torch.arange(10.0))
    parts = model.solve(10, generator=seeded(), trajectory=True, cond=torch.arange(10.0), batch_size=3)
    torch.testing.assert_close(whole.x, parts.x)
    torch.testing.assert_close(whole.trajectory, parts.trajectory)
    assert whole.nfe == parts.nfe and torch.equal(whole.times, parts.times)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_the_generator_rules_the_samples(sigma, batch_size):
    model = affine(sigma)
    draws = [model.sample(10, generator=seeded(s), batch_size=batch_size) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2])


def test_the_last_state_of_a_trajectory_is_the_sample():
    model = affine(0.5)
    path = model.sample(6, generator=seeded(), trajectory=True)
    assert path.shape == (11, 6, 2)
    assert torch.equal(path[-1], model.sample(6, generator=seeded()))


def test_steps_times_and_solver_override_the_model():
    model, x0 = affine(), torch.ones(3, 2)
    assert model.solve(x0=x0, steps=4).nfe == 4
    assert model.solve(x0=x0, times=[0.0, 0.2, 1.0]).nfe == 2
    assert model.solve(x0=x0, solver=Heun(3)).nfe == 6
    assert model.solve(x0=x0, solver=Heun(3), steps=5).nfe == 10
    assert model.sample(x0=x0, solver=Adaptive(), steps=7, trajectory=True).shape == (8, 3, 2)
    assert model.solver == Euler(10)


def test_reverse_leads_back_to_the_source():
    model, x0 = affine(solver=Heun(200)), torch.randn(5, 2, generator=seeded())
    x1 = model.sample(x0=x0)
    torch.testing.assert_close(model.sample(x0=x1, reverse=True), x0.double(), atol=1e-3, rtol=0)


def test_samples_take_the_precision_of_the_model():
    model = Generator(Gaussian(2), SDE(MLP(2, 8)), Euler(3), Standardise(2))
    assert model.dtype == torch.float32
    assert model.sample(x0=torch.zeros(3, 2).double()).dtype == torch.float32
    assert model.double().dtype == torch.float64
    assert model.sample(3).dtype == model.sample(x0=torch.zeros(3, 2)).dtype == torch.float64


def test_a_progress_bar_changes_nothing(capfd):
    model = affine()
    plain = model.sample(6, generator=seeded())
    for batch_size in (None, 3):
        barred = model.sample(6, generator=seeded(), batch_size=batch_size, progress=True)
        torch.testing.assert_close(barred, plain)
        assert "sampling" in capfd.readouterr().err


def test_noise_lives_in_the_space_of_the_model():
    model = still(Gaussian(2))
    z = model.source.sample(50, seeded())
    x = model.sample(50, generator=seeded())
    torch.testing.assert_close(x, model.transform.inverse(z))
    torch.testing.assert_close(model.sample(x0=z), x)
    path = model.sample(50, generator=seeded(), trajectory=True)
    torch.testing.assert_close(path, x.expand(5, 50, 2))
    torch.testing.assert_close(model.sample(x0=x, reverse=True), z)


def test_a_source_of_data_speaks_data_units():
    points = 40 + data(seed=4)
    model = still(Empirical(), points)
    rows = model.source.sample(50, seeded())
    torch.testing.assert_close(model.sample(50, generator=seeded()), rows)
    torch.testing.assert_close(model.sample(x0=rows), rows)
    torch.testing.assert_close(model.sample(x0=rows, trajectory=True), rows.expand(5, 50, 2))
    torch.testing.assert_close(model.sample(x0=rows, reverse=True), rows)


def test_the_process_sees_standardised_states():
    seen = []

    class Spy(Still):
        def forward(self, t, x, cond=None):
            seen.append(x)
            return torch.zeros_like(x)

    x1 = data()
    for source in (Gaussian(2), Moons()):
        model = Generator(source, SDE(Spy()), Euler(1), Standardise(2)).prepare(data(seed=1), x1)
        seen.clear()
        model.sample(x0=model.source.sample(500, seeded()))
        start = model.source.sample(500, seeded())
        expected = start if source.latent else (start - model.transform.mean) / model.transform.std
        torch.testing.assert_close(seen[0], expected)


def test_prepare_fits_the_transform_to_data_alone():
    x0, x1 = data(seed=1) + 40, data()
    latent = Generator(Gaussian(2), SDE(Still()), Euler(1), Standardise(2)).prepare(x0, x1)
    torch.testing.assert_close(latent.transform.mean, x1.mean(0))
    both = Generator(Empirical(), SDE(Still()), Euler(1), Standardise(2)).prepare(x0, x1)
    torch.testing.assert_close(both.transform.mean, torch.cat([x0, x1]).mean(0))
    torch.testing.assert_close(both.source.points, x0)


def test_encode_standardises_what_is_data():
    x0, x1 = data(seed=1), data()
    latent, both = still(Gaussian(2)), still(Moons())
    assert latent.encode(x0, x1)[0] is x0
    torch.testing.assert_close(latent.encode(x0, x1)[1], latent.transform(x1))
    torch.testing.assert_close(both.encode(x0, x1)[0], both.transform(x0))
    plain = affine()
    torch.testing.assert_close(plain.encode(x0, x1), (x0.to(plain.dtype), x1.to(plain.dtype)))


def test_density_is_refused_with_a_reason():
    with pytest.raises(NotImplementedError, match="has noise but knows no score"):
        affine(0.5).log_prob(torch.zeros(3, 2))
    with pytest.raises(NotImplementedError, match="Moons has no density"):
        affine(source=Moons()).log_prob(torch.zeros(3, 2))


def test_other_event_shapes_are_refused():
    for options in ({}, {"reverse": True}):
        with pytest.raises(ValueError, match=r"x0 has event shape \(3,\), but .* made for \(2,\)"):
            affine().sample(x0=torch.zeros(4, 3), **options)
