"""Populations to infer: a constant push in one dimension, and Lotka-Volterra."""

import torch

from genflow.population import simulate
from genflow.process.reference import LotkaVolterra, Reference
from genflow.source import Box

double = torch.float64
TIMES = (0.0, 2.0, 4.0, 6.0, 8.0)
TRUTH = LotkaVolterra(1.0, 0.4, 0.4, 0.1)
START = Box([5.0, 4.0], [5.1, 4.1])


class Push(Reference):
    """A constant drift in one dimension."""

    def __init__(self, push=0.0):
        super().__init__(1, push=push)
        self.push = push

    def field(self, t, x, values):
        return values["push"].to(x).expand_as(x)


def pushed(generator, n=(40, 60), push=0.5, sigma=0.8, times=(0.0, 2.0)):
    start = torch.randn(5000, 1, generator=generator, dtype=double)
    return simulate(Push(push), sigma, times, n, start, 0.5, generator)


def lotka_volterra(seed, n=50):
    draws = torch.Generator().manual_seed(seed)
    return simulate(TRUTH, 0.1, TIMES, [n] * 5, START, 0.02, draws)
