"""References whose parameters follow a Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to

from genflow.checks import count, name_of, positive
from genflow.process.reference.base import Reference, Values

Law = Callable[[], dict[str, Tensor]]
"""A Pyro model without arguments that returns parameters of a family by name."""


class ParameterLaw(Reference):
    r"""A family of drifts whose parameters follow any Pyro model, hierarchical ones and plates too.

    The latent sites of the model are kept unconstrained, in float64, and start at their medians (their
    means where no median is known); ``values`` runs the model at them. ``log_prior`` is the sum of the
    log-densities of the sites in their *own* space, without a Jacobian: updates that add it find the
    mode of the posterior of the sites as the model states them. Prefer non-centred scales to sites
    whose density has no upper bound.

    Args:
        reference: the family; parameters that the law does not return stay free as they are.
        law: a callable without arguments with ``pyro.sample`` sites, as :class:`HierarchicalRates` is;
            its values may have any shape that the family's drift can use. A dataclass or an
            ``nn.Module`` can be described by ``genflow.spec``.

    Raises:
        ValueError: for a law that returns unknown names, shapes that the family cannot use, values
            that are not positive where they must be, or that has discrete sites or none.
    """

    def __init__(self, reference: Reference, law: Law) -> None:
        super().__init__(reference.dim)
        trace = traced(law, lambda site: centre(site["fn"]))
        for name, site in latent(trace).items():
            start = biject_to(site["fn"].support).inv(site["value"]).double().detach().clone()
            try:
                self.raw[name] = nn.Parameter(start)
            except KeyError:
                raise ValueError(
                    f"ParameterLaw: a site cannot be called {name!r}; dots and names of torch do not do"
                ) from None
        self.reference, self.law, self.positive = reference, law, reference.positive
        self.given = _checked(reference, trace.nodes["_RETURN"]["value"])
        if not self.raw:
            raise ValueError("ParameterLaw: the law has no pyro.sample site; use the family itself")
        for name in self.given:  # the law decides them: no update may move what has no effect
            reference.raw[name].requires_grad_(False)

    @property
    def names(self) -> tuple[str, ...]:
        return self.reference.names

    def values(self) -> dict[str, Tensor]:
        return {**self.reference.values(), **self._trace().nodes["_RETURN"]["value"]}

    def sites(self) -> dict[str, Tensor]:
        """Latent sites of the law by name, constrained, as functions of what is kept."""
        return {name: site["value"] for name, site in latent(self._trace()).items()}

    def log_prior(self) -> Tensor:
        return self._trace().log_prob_sum()

    def assign(self, **values: float | Sequence[Any] | Tensor) -> ParameterLaw:
        """Set sites of the law, or parameters that it leaves alone, in place.

        Raises:
            ValueError: for other names, shapes or values outside a site's support.
        """
        for name, value in values.items():
            if name not in self.raw and (name in self.given or name not in self.names):
                free = [*self.raw, *(n for n in self.names if n not in self.given)]
                raise ValueError(
                    f"ParameterLaw: {name!r} is no site of the law, which alone decides "
                    f"{', '.join(self.given)}; assign any of {', '.join(free)}"
                )
            if name not in self.raw:
                self.reference.assign(**{name: value})
                continue
            # one at a time: the support of a site may depend on those before it
            site = latent(self._trace())[name]
            number = torch.as_tensor(value, dtype=torch.float64, device=self.raw[name].device)
            if number.shape != site["value"].shape or not bool(site["fn"].support.check(number).all()):
                raise ValueError(
                    f"ParameterLaw: {name}={value!r} must have shape {tuple(site['value'].shape)} and "
                    f"lie in the support of its site, {site['fn'].support}"
                )
            with torch.no_grad():
                self.raw[name].copy_(biject_to(site["fn"].support).inv(number))
        return self

    def field(self, t: Tensor | float, x: Tensor, values: Values) -> Tensor:
        return self.reference.field(t, x, values)

    def jacobian(self, t: Tensor | float, x: Tensor, values: Values | None = None) -> Tensor:
        return self.reference.jacobian(t, x, self.values() if values is None else values)

    def _trace(self) -> Any:
        return traced(self.law, lambda site: at(site["fn"], self.raw[site["name"]]))


@dataclass(frozen=True)
class HierarchicalRates:
    r"""Positive rates of a repressilator, one a gene, around means that the genes share.

    .. math:: \bar\beta \sim \text{LogNormal}(\log\beta, w),\qquad \beta_i \sim
        \text{LogNormal}(\log\bar\beta, s),

    and so :math:`\gamma_i`; the Hill terms share :math:`n` and :math:`k`, LogNormal of width ``w`` too.

    Args:
        genes: how many.
        beta, n, k, gamma: medians of the shared laws, positive.
        width: :math:`w`, the standard deviation of the logarithm of a shared number.
        spread: :math:`s`, that of a gene about it.

    Raises:
        ValueError: for numbers that are not positive.
    """

    genes: int = 3
    beta: float = 1.0
    n: float = 1.0
    k: float = 1.0
    gamma: float = 0.1
    width: float = 1.0
    spread: float = 0.3

    def __post_init__(self) -> None:
        count(self, genes=self.genes)
        positive(self, beta=self.beta, n=self.n, k=self.k, gamma=self.gamma)
        positive(self, width=self.width, spread=self.spread)

    def __call__(self) -> dict[str, Tensor]:
        import pyro
        from pyro.distributions import LogNormal

        def shared(name: str, median: float) -> Tensor:
            about = torch.tensor(median, dtype=torch.float64).log()
            return pyro.sample(name, LogNormal(about, self.width))

        means = {name: shared(f"{name}_mean", getattr(self, name)) for name in ("beta", "gamma")}
        hill = {name: shared(name, getattr(self, name)) for name in ("n", "k")}
        with pyro.plate("gene", self.genes):
            rates = {
                name: pyro.sample(name, LogNormal(mean.log(), self.spread))
                for name, mean in means.items()
            }
        return {**rates, **hill}


def traced(model: Callable[[], Any], value: Callable[[dict[str, Any]], Tensor]) -> Any:
    """Run a Pyro model with ``value(site)`` at its latent sites; nothing is drawn.

    Raises:
        ValueError: for discrete sites.
    """
    from pyro import poutine

    with _Valued.of(value):
        return poutine.trace(model).get_trace()


def latent(trace: Any) -> dict[str, dict[str, Any]]:
    """The latent sites of a trace by name, in order."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not _subsample(site)
    }


def at(fn: Distribution, free: Tensor) -> Tensor:
    """The value of a site of law ``fn`` whose unconstrained value is ``free``."""
    return biject_to(fn.support)(free)


def centre(fn: Distribution) -> Tensor:
    """The median of a law, its mean where that is not known, else the middle of its support."""
    base = fn
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    half = torch.full((), 0.5, dtype=torch.float64)
    for find in (lambda: base.icdf(half), lambda: fn.mean):
        try:
            found = find()
        except (NotImplementedError, AttributeError):
            continue
        if bool(torch.isfinite(found).all()):
            return found.expand(fn.shape()).detach()
    bijection = biject_to(fn.support)
    shape = bijection.inverse_shape(fn.shape())
    return bijection(torch.zeros(shape, dtype=torch.float64))


def _checked(reference: Reference, values: Any) -> tuple[str, ...]:
    """Names of what a law returns, if the family can use it."""
    known = ", ".join(reference.names) or "none"
    if not isinstance(values, dict) or not values or not set(values) <= set(reference.names):
        given = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(
            f"ParameterLaw: the law must return a dict of parameters of {name_of(reference)} "
            f"({known}), got {given or 'none'}"
        )
    shapes = {name: tuple(torch.as_tensor(value).shape) for name, value in values.items()}
    x = torch.ones(5, reference.dim, dtype=torch.float64)
    try:
        shape = tuple(reference.field(0.0, x, {**reference.values(), **values}).shape)
    except (RuntimeError, IndexError, AttributeError) as error:
        shape = error
    if shape != tuple(x.shape):
        raise ValueError(
            f"ParameterLaw: {name_of(reference)} of {reference.dim} coordinates cannot use values of "
            f"shapes {shapes}"
        )
    for name in set(values) & set(reference.positive):
        if not bool((values[name] > 0).all()):
            raise ValueError(
                f"ParameterLaw: the law must keep {name} positive, e.g. by a LogNormal site"
            )
    return tuple(values)


def _subsample(site: dict[str, Any]) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"  # the indices of a plate


class _Valued:
    """Sets latent sites while a Pyro model runs."""

    @staticmethod
    def of(value: Callable[[dict[str, Any]], Tensor]) -> AbstractContextManager[Any]:
        from pyro.poutine.messenger import Messenger

        class Valued(Messenger):
            def _pyro_sample(self, site: dict[str, Any]) -> None:
                if site["is_observed"] or _subsample(site):
                    return
                if site["fn"].support.is_discrete:
                    raise ValueError(
                        f"the Pyro model has a discrete site, {site['name']!r}; sum it out, or give it "
                        "a continuous law"
                    )
                site["value"] = value(site)

        return Valued()
