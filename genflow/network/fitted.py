"""Any network as a regressor that fits itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genflow.checks import count, positive
from genflow.tensors import batch_time


class Fitted(nn.Module):
    """A network with ``fit(t, x, y)``: Adam on the mean squared error of all rows at once.

    A fit starts from the weights that the network has, with a new Adam, and leaves the network in
    evaluation mode. The full batch is not shuffled, so that it draws nothing, except where layers do
    (dropout): those are seeded, and the caller's random state is left alone. Inputs and targets are
    taken in raw units.

    Args:
        network: any ``f(t, x)``, in its own precision.
        steps: of Adam; the defaults are those of Shen, Berlinghieri & Broderick's code for networks.
        lr: its rate.
        seed: of layers that draw.

    Raises:
        ValueError: for numbers out of range, shapes that do not fit, and a fit that ends without a
            finite error.
    """

    def __init__(self, network: nn.Module, steps: int = 250, lr: float = 5e-3, seed: int = 0) -> None:
        super().__init__()
        count(self, steps=steps)
        count(self, 0, seed=seed)
        positive(self, lr=lr)
        self.network, self.steps, self.lr, self.seed = network, steps, lr, seed

    def fit(self, t: Tensor | float, x: Tensor, y: Tensor) -> Fitted:
        """Regress targets ``y (n, *d)`` on times ``t (n,)`` and states ``x (n, *d)``."""
        if y.shape != x.shape or not len(x):
            raise ValueError(
                f"Fitted.fit: x has shape {tuple(x.shape)} and y {tuple(y.shape)}; both must be "
                "(n, *d) with n >= 1"
            )
        t, x, y = (v.detach().to(self._dtype(x)) for v in (batch_time(t, x), x, y))
        adam = torch.optim.Adam(self.network.parameters(), lr=self.lr)
        devices = [x.device] if x.device.type == "cuda" else []
        self.network.train()
        with torch.enable_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            for _ in range(self.steps):
                adam.zero_grad()
                loss = nn.functional.mse_loss(self.network(t, x), y)
                loss.backward()
                adam.step()
        self.network.eval()
        if not loss.isfinite():
            raise ValueError(
                f"Fitted.fit: the error is not finite after {self.steps} steps; use a smaller lr than "
                f"{self.lr:g}, or check that x and y are finite"
            )
        return self

    def forward(self, t: Tensor | float, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network at times ``t (B,)`` and states ``x (B, *d)``, in the dtype of ``x``."""
        dtype = self._dtype(x)
        inputs = (batch_time(t, x).to(dtype), x.to(dtype))
        return self.network(*inputs, *(() if cond is None else (cond,))).to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        first = next(self.network.parameters(), None)
        return x.dtype if first is None else first.dtype
