"""A training small enough to run a hundred times: parts, a trainer, and what tests look at."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from genflow.data import Data, Simulated
from genflow.loss import Loss, Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE, Process
from genflow.solver import Euler
from genflow.source import Gaussian, Moons
from genflow.training import Checkpoint, DataModule, Training

adam = partial(torch.optim.Adam, lr=1e-2)


class Dropping(nn.Module):
    """A network that draws from the global stream while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2))

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], 1))


class Normed(nn.Module):
    """A network with buffers, one of them an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], 1))


class Counter(Process):
    """A learner without parameters: it moves by the mean of the data that it has seen."""

    stochastic = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("updates", torch.tensor(0))

    def drift(self, t: Tensor, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.mean.expand_as(x)

    def diffusion(self, t: Tensor, x: Tensor, dw: Tensor) -> Tensor:
        return 0 * dw


@dataclass(frozen=True)
class RunningMean(Loss):
    """Advances a :class:`Counter` by one batch, as a loss that fits its own learner does.

    Validation wants the number alone: the learner is in eval mode then.
    """

    def __call__(self, learner, *xs, cond=None, generator=None) -> Tensor:
        if learner.training:
            learner.updates += 1
            learner.mean += (xs[-1].mean(0) - learner.mean) / learner.updates
        return (learner.mean**2).sum()


def toy(network: nn.Module | None = None, loss: Loss | None = None, **options) -> Training:
    """A training on the plane; equal calls give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(2, width=16, depth=2) if network is None else network
        for part in network.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
    model = Generator(Gaussian(2), SDE(network), Euler(5))
    options = {"optimizer": adam} | options
    return Training(model, Matching() if loss is None else loss, **options)


def counting() -> Training:
    return Training(Generator(Gaussian(2), Counter(), Euler(2)), RunningMean())


def moons(data: Data | None = None, **options) -> DataModule:
    options = {"batch_size": 32, "val_batches": 2} | options
    return DataModule(Simulated(Gaussian(2), Moons()) if data is None else data, **options)


def trainer(folder: Path, steps: int = -1, callbacks=(), **options) -> L.Trainer:
    """A silent trainer on the CPU; it validates every three batches."""
    defaults = {
        "max_epochs": -1,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(part, Checkpoint) for part in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    return L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, default_root_dir=folder,
        callbacks=list(callbacks), **(defaults | options),
    )  # fmt: skip


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def stored(path: Path, which: str = "state_dict") -> dict[str, Tensor]:
    """Weights in a run's file: the ``state_dict`` that is read, or ``current_model_state``."""
    return torch.load(path, weights_only=True)[which]


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two state dicts agree bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class Recorder(L.Callback):
    """The raw weights after every batch."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.weights.append(weights(pl_module))


class Watching(Training):
    """A training that notes which weights validation and test see."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.validated: list[Tensor] = []
        self.tested: list[Tensor] = []

    def on_validation_epoch_end(self) -> None:
        self.validated.append(weights(self))
        super().on_validation_epoch_end()

    def test_step(self, batch, batch_idx: int) -> None:
        self.tested.append(weights(self))
