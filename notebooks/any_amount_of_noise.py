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
# # Any amount of noise
#
# A stochastic interpolant (Albergo, Boffi & Vanden-Eijnden 2023) is trained once, and how much noise it
# is sampled with is chosen afterwards: with the velocity $b$ and the score $s$ that it learns, the ODE
# and all of the SDEs
#
# $$dX=(b+\epsilon s)\,dt+\sqrt{2\epsilon}\,dW,\qquad\epsilon(t)\ge0,$$
#
# pass through the same laws. Here is the classic picture, what each amount costs, and the way back. A
# minute on one CPU core.

# %%
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from genflow.distance import EnergyDistance
from genflow.interpolant import Brownian, Linear
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import StochasticInterpolant
from genflow.solver import StochasticHeun
from genflow.source import Checkerboard, Gaussian
from genflow.target import Noise, Velocity
from genflow.time import Uniform

noise, board = Gaussian(2), Checkerboard()
path = Linear(gamma=Brownian())

# %% [markdown]
# ## One training
#
# Two fields from one draw: the velocity, and the mean of the added noise, which is the score but for
# its width. Nothing here knows how the model will be sampled.

# %%
torch.manual_seed(0)
fields = MLP(2, width=128, depth=4, outputs=["velocity", "noise"])
model = Generator(noise, StochasticInterpolant(fields, path), StochasticHeun(80))
loss = Matching(
    path,
    time=Uniform(margin=1e-3),
    target={"velocity": Velocity(), "noise": Noise()},
    antithetic=True,
)
steps = 3000
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
draw = torch.Generator().manual_seed(0)
for _ in tqdm(range(steps), mininterval=2, leave=False):
    value = loss(model.process, noise.sample(256, draw), board.sample(256, draw), generator=draw)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    schedule.step()
model = model.eval()

# %% [markdown]
# ## Six amounts of noise
#
# An amount is a number, `"gamma"` or `"gamma_squared"` (the width of the path, which vanishes at both
# ends), or a function of the time. All six start from the same points, coloured by their direction from
# the origin. The ODE is a map, and keeps the colours in order; noise forgets them, while the board
# stays. How much is forgotten is free too: noise early on, as in $4(1-t)^2$, mixes as well as noise
# everywhere.

# %%
start = noise.sample(3000, draw)
hue = torch.atan2(start[:, 1], start[:, 0])
amounts = {
    "0: the ODE": 0,
    "0.1": 0.1,
    "1": 1.0,
    "gamma": "gamma",
    "4 (1 - t)²": lambda t: 4 * (1 - t) ** 2,
    "10": 10.0,
}
samples = {name: model.sample(x0=start, epsilon=e, generator=draw) for name, e in amounts.items()}


def panels(clouds, colours, title, limit=5.0):
    figure, axes = plt.subplots(1, len(clouds), figsize=(2.1 * len(clouds), 2.6), layout="constrained")
    for axis, (name, points) in zip(axes, clouds.items()):
        axis.scatter(*points.T, s=2, c=colours, cmap="hsv", linewidths=0)
        axis.set(title=name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axis.set_xticks([]), axis.set_yticks([])
    figure.suptitle(title)


panels(samples, hue, "one board, six amounts of noise: colours show where each point came from")

# %% [markdown]
# ## What does an amount cost?
#
# Two measures, since one alone deceives: the energy distance to fresh data, beside that of other fresh
# data (the band), and the share of points off the dark fields.

# %%
test = board.sample(3000, draw)


def quality(x):
    distance = EnergyDistance()(x, test)
    return float(distance), float(board.log_prob(x).isinf().double().mean())


fresh = [quality(board.sample(3000, draw))[0] for _ in range(8)]
numbers = [0.0, 0.1, 0.3, 1.0, 3.0, 10.0]
found = {
    steps: [
        quality(model.sample(x0=start, epsilon=epsilon, steps=steps, generator=draw))
        for epsilon in numbers
    ]
    for steps in (5, 20, 80)
}

# %%
_, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
places = range(len(numbers))
axes[0].axhspan(min(fresh), max(fresh), color="#dddddd", label="fresh data, 8 times")
for steps, pairs in found.items():
    for axis, values in zip(axes, zip(*pairs)):
        axis.plot(places, values, marker="o", ms=4, label=f"{2 * steps} evaluations")
axes[0].legend(frameon=False, loc="upper left")
axes[0].set(yscale="log", ylim=(5e-4, 1), title="energy distance to the data")
axes[1].set(ylim=(0, 0.4), title="share of points off the dark fields")
for axis in axes:
    axis.set(xticks=places, xticklabels=[f"{e:g}" for e in numbers], xlabel="epsilon")
    axis.grid(alpha=0.3)

# %% [markdown]
# The ODE is done after 10 evaluations. Noise wants more, or points are left between the fields. With
# enough of them moderate amounts come about as close as fresh data do; the largest does not, although it
# has the fewest points off the fields. Where are they, then? A quarter of the data lies in the middle
# quarter of its field.


# %%
def middle(x):
    """Share of the points on dark fields that lie in the middle quarter of theirs."""
    place = (x[board.log_prob(x).isfinite()] / 2) % 1
    return float(((place - 0.5).abs() < 0.25).all(1).double().mean())


few = noise.sample(1000, draw)
for epsilon in (0.0, 1.0, 10.0):
    coarse, fine = (
        model.sample(x0=few, epsilon=epsilon, steps=steps, generator=draw) for steps in (80, 400)
    )
    print(
        f"epsilon {epsilon:>2g}: {middle(coarse):.0%} in the middle after 160 evaluations, "
        f"{middle(fine):.0%} after 800"
    )

# %% [markdown]
# They huddle, and more steps do not help, so it is not the solver. That much noise follows the score
# alone, and the score is what networks get wrong close to the ends (the notebook *How wrong is my
# flow?* shows it). The ODE does not look at it at all. Between the two lies an amount that forgives
# both; where laws are known, `oracle.field_error` finds it.
#
# ## And back
#
# The same fields run from data to noise, again with any amount. The ODE retraces its path, so a
# round trip leads home; noise leads to another point of the same law.

# %%
x1, aim = board.sample(3000, draw), noise.sample(3000, draw)
clouds = {"data": x1}
print(
    f"energy distance of two draws of the source: {EnergyDistance()(noise.sample(3000, draw), aim):.4f}"
)
for epsilon in (0.0, 1.0):
    back = model.sample(x0=x1, epsilon=epsilon, steps=40, reverse=True, generator=draw)
    forth = model.sample(x0=back, epsilon=epsilon, steps=40, generator=draw)
    clouds |= {f"back, epsilon {epsilon:g}": back, f"and forth, epsilon {epsilon:g}": forth}
    moved = (forth - x1).square().sum(1).mean().sqrt()
    print(
        f"epsilon {epsilon:g}: energy distance to the source {EnergyDistance()(back, aim):.4f}, "
        f"a round trip moves points by {moved:.2f}"
    )
panels(clouds, torch.atan2(x1[:, 1], x1[:, 0]), "from data to noise, and to data again")

# %% [markdown]
# The ODE's noise has a rim, with nothing beyond it: the data end sharply, the learned velocity does
# not, and the points that the forward run spills off the board are those that start outside.
