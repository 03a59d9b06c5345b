"""Exact transitions as a solver."""

import pytest
import torch
from laws import moment_scores
from torch import Tensor

import genflow
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, LightBridge, Process
from genflow.solver import Euler, Exact
from genflow.source import Gaussian, Moons
from genflow.transform import Standardise


class Decay(Process):
    """An Ornstein-Uhlenbeck process with its transition: :math:`dX = -5X\\,dt + 2\\,dW`."""

    stochastic = True
    reversible = True

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return -5 * x

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return 2 * dw

    def transition(self, s, t, x, generator=None):
        if t < s:
            raise ValueError("Decay runs forward")
        kept = torch.exp(torch.tensor(-5.0 * (t - s), dtype=x.dtype))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return kept * x + (0.4 * (1 - kept**2)).sqrt() * noise


def ends(solver, seed: int, times=None) -> Tensor:
    x = torch.full((20_000, 2), 2.0, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    return solver.solve(Decay(), x, times, generator=draw).x


@pytest.mark.parametrize("solver", [Exact(), Exact(7)], ids=str)
def test_any_number_of_steps_has_the_law_of_fine_steps(solver):
    assert moment_scores(ends(solver, 0), ends(Euler(1000), 1)) < 4
    assert (
        moment_scores(
            ends(solver, 0, [0.0, 0.1, 0.15]), ends(Euler(300), 1, torch.linspace(0, 0.15, 200))
        )
        < 4
    )


def test_as_many_steps_of_euler_do_not():
    assert moment_scores(ends(Euler(7), 0), ends(Euler(1000), 1)) > 10


def test_transitions_are_counted():
    x = torch.zeros(3, 2)
    assert Exact().solve(Decay(), x).nfe == 1
    found = Exact().solve(Decay(), x, [0.0, 0.2, 0.5], trajectory=True)
    assert (found.nfe, found.trajectory.shape) == (2, (3, 3, 2))
    assert torch.equal(found.trajectory[-1], found.x)
    first = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    by_hand = Exact().step(Decay(), 0.0, 1.0, x, first[0])
    assert torch.equal(by_hand, Exact().solve(Decay(), x, generator=first[1]).x)


def test_the_process_says_whether_it_runs_backwards():
    with pytest.raises(ValueError, match="Decay runs forward"):
        Exact().solve(Decay(), torch.zeros(3, 2), [1.0, 0.0])


def test_what_has_no_transition_is_refused():
    with pytest.raises(ValueError, match="transitions, which SDE does not know; use StochasticHeun"):
        Exact().solve(SDE(MLP(2, 8), 1.0), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="no conditions"):
        Exact().solve(Decay(), torch.zeros(3, 2), cond=torch.zeros(3))
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        Exact(0)


def model(transform=None) -> Generator:
    draw = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2000, 2, generator=draw), Moons().sample(2000, draw)
    made = Generator(Gaussian(2), LightBridge(2, 8, 0.3), Exact(), transform)
    return made.prepare(x0, x1)


@pytest.mark.parametrize("transform", [None, Standardise(2)], ids=["plain", "standardised"])
def test_a_generator_samples_by_it(transform, tmp_path):
    made, draw = model(transform), torch.Generator().manual_seed(1)
    path = made.sample(5000, times=[0.0, 0.4, 1.0], trajectory=True, generator=draw)
    assert path.shape == (3, 5000, 2)
    fine = made.sample(5000, solver=Euler(300), trajectory=True, generator=draw)
    assert moment_scores(path[-1].double(), fine[-1].double()) < 4
    assert moment_scores(path[1].double(), fine[120].double()) < 4
    assert made.solve(5).nfe == 1 and made.solve(5, steps=4).nfe == 4
    genflow.save(made, tmp_path / "model.ckpt")
    loaded = genflow.load(tmp_path / "model.ckpt")
    draws = [m.sample(9, generator=torch.Generator().manual_seed(2)) for m in (made, loaded)]
    assert torch.equal(*draws) and genflow.spec(loaded) == genflow.spec(made)


def test_a_generator_runs_back_to_the_law_of_the_start():
    made, draw = model(), torch.Generator().manual_seed(1)
    x1 = made.sample(5000, generator=draw)
    back = made.sample(x0=x1, reverse=True, generator=draw)
    assert moment_scores(back.double(), torch.randn(5000, 2, generator=draw).double()) < 5
    assert made.solve(x0=x1, reverse=True, generator=draw).nfe == 1


def test_unprepared_bridges_do_not_run_back():
    made = Generator(Gaussian(2), LightBridge(2, 8, 0.3), Exact())
    with pytest.raises(ValueError, match="LightBridge"):
        made.sample(x0=torch.zeros(3, 2), reverse=True)


class Noted(Decay):
    """Keeps what it was prepared with."""

    def prepare(self, *xs: Tensor) -> Process:
        self.seen = xs
        return self


def test_the_process_is_prepared_in_its_own_space(generator):
    x0, x1 = torch.randn(50, 2, generator=generator), 3 + 5 * torch.randn(60, 2, generator=generator)
    made = Generator(Gaussian(2), Noted(), Exact(), Standardise(2)).prepare(x0, x1)
    assert torch.equal(made.process.seen[0], x0)
    assert torch.equal(made.process.seen[1], made.transform(x1))
    assert Decay().prepare(x0, x1).drift(0.0, x0) is not None  # most have nothing to prepare
