"""What the snapshots say of the parameters: by Laplace, variational inference or NUTS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genflow.checks import between, count, one_of, positive
from genflow.population.mode import Flat, Mode, find_mode

if TYPE_CHECKING:
    from genflow.population.model import PopulationModel

METHODS = ("laplace", "svi", "nuts")


@dataclass(frozen=True)
class Draws:
    """Draws of parameters, from a posterior or of an estimator.

    Attributes:
        samples: by name, ``(S, ...)``; parameters, and other unknowns.
        names: which of them are the parameters.
    """

    samples: dict[str, Tensor]
    names: tuple[str, ...]

    @property
    def mean(self) -> dict[str, Any]:
        """Mean of each parameter."""
        return {name: self.samples[name].mean(0).tolist() for name in self.names}

    def intervals(
        self, level: float = 0.9, names: Sequence[str] | None = None, simultaneous: bool = False
    ) -> dict[str, tuple[Any, Any]]:
        """Equal-tailed intervals ``{name: (low, high)}``.

        Args:
            level: probability that an interval holds, between 0 and 1.
            names: of which unknowns; all parameters by default.
            simultaneous: whether it is the probability that *all* of them hold at once.

        Raises:
            ValueError: for other levels and names.
        """
        between("intervals", 0, 1, level=level)
        names = self.names if names is None else tuple(names)
        for name in names:
            one_of("intervals", tuple(self.samples), names=name)
        tail = (1 - level) / 2
        if simultaneous:
            together = torch.cat([v.reshape(len(v), -1) for v in map(self.samples.get, names)], 1)
            ranks = together.argsort(0).argsort(0).double() / (len(together) - 1)
            tail = float(torch.minimum(ranks, 1 - ranks).amin(1).quantile(1 - level))
        return {name: self._ends(name, tail) for name in names}

    def _ends(self, name: str, tail: float) -> tuple[Any, Any]:
        at = torch.tensor([tail, 1 - tail], dtype=torch.float64)
        low, high = self.samples[name].double().quantile(at.to(self.samples[name].device), dim=0)
        return low.tolist(), high.tolist()


@dataclass(frozen=True)
class Posterior(Draws):
    """Draws from the posterior of a :class:`PopulationModel`.

    Attributes:
        method: how they were found.
        mode: most probable point, in unconstrained coordinates.
        diagnostics: ``losses`` of variational inference; ``divergences``, ``r_hat`` and ``effective``
            (the least over unknowns) of NUTS.
    """

    method: str = "laplace"
    mode: Mode | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)


def laplace(
    model: PopulationModel,
    draws: int = 2000,
    iterations: int = 100,
    generator: torch.Generator | None = None,
) -> Posterior:
    """Gaussian at the mode, in unconstrained coordinates; its precision is the information that the
    model expects of the data.

    Args:
        model: of the population.
        draws: how many.
        iterations: most steps to the mode.
        generator: where draws come from.

    Raises:
        RuntimeError: if no mode is found.
    """
    count("laplace", draws=draws, iterations=iterations)
    flat, mode = find_mode(model, iterations)
    white = _normal(draws, len(mode.z), mode.z, generator)
    return _posterior(flat, mode, white, "laplace", {})


def svi(
    model: PopulationModel,
    draws: int = 2000,
    steps: int = 300,
    lr: float = 0.02,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Posterior:
    """Full-rank Gaussian that is nearest in KL(guide | posterior), in unconstrained coordinates.

    Args:
        model: of the population.
        draws: how many.
        steps: of Adam, from the Laplace approximation on.
        lr: in units of the posterior's width; it falls to a hundredth.
        generator: where draws come from.
        progress: show a progress bar.
    """
    from pyro import get_param_store, infer, optim
    from pyro.infer.autoguide import AutoMultivariateNormal, init_to_value

    count("svi", draws=draws, steps=steps)
    positive("svi", lr=lr)
    flat, mode = find_mode(model)
    whitened = _whitened(flat, mode)
    with _Seeded(generator), get_param_store().scope():  # other guides keep their numbers
        start = init_to_value(values={"white": torch.zeros_like(mode.z)})
        guide = AutoMultivariateNormal(whitened, init_loc_fn=start, init_scale=1.0)
        adam = optim.ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / steps)})
        learner = infer.SVI(whitened, guide, adam, infer.Trace_ELBO())
        losses = [learner.step() for _ in _bar(range(steps), progress)]
        with torch.no_grad():
            white = guide.get_posterior().sample((draws,))
    return _posterior(flat, mode, white, "svi", {"losses": losses})


def nuts(
    model: PopulationModel,
    draws: int = 500,
    warmup: int = 200,
    chains: int = 1,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Posterior:
    """The no-U-turn sampler, in coordinates that are white under the Laplace approximation, where few
    leapfrog steps do.

    Args:
        model: of the population.
        draws: of each chain.
        warmup: steps that adapt and are dropped.
        chains: run one after another.
        generator: where draws come from.
        progress: show a progress bar.
    """
    from pyro.infer import MCMC, NUTS

    count("nuts", draws=draws, warmup=warmup, chains=chains)
    flat, mode = find_mode(model)
    runs, divergences = [], 0
    with _Seeded(generator):
        for _ in range(chains):
            kernel = NUTS(_whitened(flat, mode), adapt_mass_matrix=False, max_tree_depth=6)
            start = {"white": torch.randn_like(mode.z)}
            chain = MCMC(kernel, draws, warmup, initial_params=start, disable_progbar=not progress)
            chain.run()
            runs.append(chain.get_samples()["white"])
            divergences += sum(map(len, chain.diagnostics()["divergences"].values()))
    found = {"divergences": divergences, **_mixing(torch.stack(runs))}
    return _posterior(flat, mode, torch.cat(runs), "nuts", found)


def _posterior(
    flat: Flat, mode: Mode, white: Tensor, method: str, diagnostics: dict[str, Any]
) -> Posterior:
    """White draws as parameters and other unknowns."""
    with torch.no_grad():
        samples = flat.named(mode.z + white @ mode.root.mT)
    return Posterior(samples, flat.model.names, method, mode, diagnostics)


def _whitened(flat: Flat, mode: Mode) -> Callable[[], None]:
    """The posterior as a Pyro model of one site, white under the Laplace approximation."""
    import pyro
    from pyro.distributions import Normal

    root, like = mode.root, mode.z

    def whitened() -> None:
        law = Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1).mask(False)
        white = pyro.sample("white", law)
        with pyro.poutine.block():  # its sites are no sites of this one
            fit = mode.potential - flat.potential(mode.z + root @ white)[0]
        pyro.factor("fit", fit)

    return whitened


def _mixing(runs: Tensor) -> dict[str, float]:
    """Convergence of chains ``(C, S, p)``."""
    from pyro.ops.stats import effective_sample_size, split_gelman_rubin

    return {
        "r_hat": float(split_gelman_rubin(runs, 0, 1).max()),
        "effective": float(effective_sample_size(runs, 0, 1).min()),
    }


def _normal(n: int, p: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(n, p, generator=generator, dtype=like.dtype, device=device).to(like)


class _Seeded:
    """Pyro draws from torch's global stream: seed it from the generator, and put it back after."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.fork = torch.random.fork_rng(enabled=generator is not None)

    def __enter__(self) -> None:
        self.fork.__enter__()
        if self.generator is not None:
            draw = torch.randint(2**31, (), generator=self.generator, device=self.generator.device)
            torch.manual_seed(int(draw))

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def _bar(steps: Any, progress: bool) -> Any:
    if not progress:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc="svi")
