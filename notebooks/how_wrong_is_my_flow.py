# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How wrong is my flow?
#
# A training loss cannot say: most of it is noise that no network removes. But between Gaussian mixtures the
# fields of a stochastic interpolant (Albergo, Boffi & Vanden-Eijnden 2023) are known, and an *oracle* tells
# at every time how far a network is from them. Here we train one, ask where it is wrong, what that costs in
# nats, and how much noise it should be sampled with. A minute on one CPU core.

# %%
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from genflow import plot
from genflow.interpolant import Brownian, Linear
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.oracle import Exact, independent
from genflow.process import StochasticInterpolant
from genflow.solver import Heun
from genflow.source import GaussianMixture
from genflow.target import Noise, Velocity
from genflow.time import Uniform

draw = torch.Generator().manual_seed(0)
source = GaussianMixture([[-3.0, -1.5], [-3.0, 1.5]], 0.5)
data = GaussianMixture(
    [[3.0, 0.0], [2.0, 2.5], [2.0, -2.5], [0.5, 0.0]],
    [[[0.1, 0.0], [0.0, 0.6]], [[0.4, 0.3], [0.3, 0.4]], [[0.4, -0.3], [-0.3, 0.4]], [[0.1, 0.0], [0.0, 0.1]]],
)  # fmt: skip
path = Linear(gamma=Brownian())
oracle = Exact(independent(source, data), path)

# %% [markdown]
# ## A flow without a network
#
# The oracle returns `velocity` and `noise` like a network with two heads, so it may stand wherever one may.
# What is still wrong then is the solver, and nothing else.

# %%
exact = Generator(source, StochasticInterpolant(oracle, path), Heun(40))
test = data.sample(2000, draw)
trajectory = exact.sample(2000, trajectory=True, generator=draw)
plot.flow(
    trajectory[0], test, trajectory[-1], trajectory, "a flow with exact fields: only the solver errs"
)

# %%
print("Heun steps   error of log p (RMS, nats)")
for steps in (5, 10, 20, 40):
    gap = exact.log_prob(test, solver=Heun(steps)) - data.log_prob(test)
    print(f"{steps:>10}   {gap.square().mean().sqrt():.4f}")

# %% [markdown]
# ## The loss does not tell
#
# Twice the same network and the same number of its evaluations: once the plain loss on batches of 512, once
# 256 draws each looked at twice, with their noise turned round (`antithetic=True`).


# %%
def train(antithetic, batch, steps=1600, every=100):
    targets = {"velocity": Velocity(), "noise": Noise()}
    loss = Matching(path, time=Uniform(margin=1e-3), target=targets, antithetic=antithetic)
    torch.manual_seed(0)
    process = StochasticInterpolant(MLP(2, outputs=["velocity", "noise"]), path)
    optimizer = torch.optim.Adam(process.parameters(), lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw, look = (torch.Generator().manual_seed(k) for k in (0, 1))
    losses, errors = [], []
    for step in tqdm(range(1, steps + 1), mininterval=2, leave=False):
        value = loss(process, source.sample(batch, draw), data.sample(batch, draw), generator=draw)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if step % every == 0:
            found = oracle.field_error(process, n=500, generator=look).numbers()
            errors.append((step, found["velocity_rms"]))
    return Generator(source, process, Heun(40)).eval(), losses, errors


plain, plain_losses, plain_errors = train(antithetic=False, batch=512)
model, losses, errors = train(antithetic=True, batch=256)

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
runs = {"plain": (plain_losses, plain_errors), "antithetic": (losses, errors)}
for name, (values, pairs) in runs.items():
    left.plot(values, lw=0.6, label=name)
    right.plot(*zip(*pairs), marker="o", ms=3, label=name)
left.set(title="training loss", xlabel="step", ylim=(0, 10))
right.set(title="true error of the velocity (RMS)", xlabel="step", ylim=(0, None))
left.legend(frameon=False)
for axis in (left, right):
    axis.grid(alpha=0.3)

# %% [markdown]
# ## Where it is wrong

# %%
error = oracle.field_error(model, generator=draw)
error.figure("the fields of the trained network")

# %% [markdown]
# ## What it costs, and which noise to take

# %%
bound = error.kl_bound
gap = data.log_prob(test) - model.log_prob(test)
print(f"ODE: KL = {gap.mean():.3f} +- {gap.std() / len(gap) ** 0.5:.3f} nats, by the likelihoods")
print(f"SDE: KL <= {bound.bound:.3f} nats at the best epsilon, {bound.epsilon:.2f}")

# %%
low, high = torch.tensor([-0.6, -4.0]), torch.tensor([4.4, 4.0])


def shares(x):
    """How many points lie in each of 10 x 10 cells; those outside count for the nearest."""
    edges = [float(v) for pair in zip(low, high) for v in pair]
    found = torch.histogramdd(x.clamp(low, high), [10, 10], edges).hist + 0.5
    return found / found.sum()


true = shares(data.sample(1_000_000, draw))


def seen(x):
    return float((true * (true / shares(x)).log()).sum())


floor = seen(data.sample(10_000, draw))
start = source.sample(10_000, draw)
amounts = torch.logspace(-2, 1, 8).tolist()
kls = {}
for steps in (50, 200):
  for epsilon in tqdm((0.0, *amounts), leave=False):
    samples = model.sample(x0=start, epsilon=epsilon, steps=steps, generator=draw)
    kls[steps, epsilon] = seen(samples)
  print(kls)

# %%
_, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
fine = torch.logspace(-2, 1, 100)
axis.plot(fine, bound.curve(fine), color="C0", label="bound")
axis.plot(bound.epsilon, bound.bound, "o", color="C0")
for steps in (50,200):
    axis.plot(amounts, [kls[steps,k] for k in amounts], marker="o", ms=3, label="seen on 10 x 10 cells")
axis.axhline(kls[200,0.0], color="C2", label="ODE, seen on the same cells")
axis.axhline(floor, ls=":", color="#444444", label="fresh draws of the data")
axis.set(xscale="log", yscale="log", xlabel="epsilon", ylabel="KL, nats")
axis.legend(frameon=False)
axis.grid(alpha=0.3)

# %% [markdown]
# ## Point by point

# %%
_, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
dots = axis.scatter(*test.T, c=-gap, s=5, cmap="coolwarm", vmin=-1, vmax=1)
axis.set(title="model minus true log-density", aspect="equal")
plt.colorbar(dots, label="nats")
