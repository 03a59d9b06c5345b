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
# # How many projections?
#
# The sliced Wasserstein distance is a mean over all directions $\theta$ of a distance on the line, which
# takes no more than sorting:
#
# $$SW_2^2(x,y)=E_\theta\,W_2^2(\theta'x,\theta'y).$$
#
# It is estimated from $L$ directions, and the noise of that estimate goes into every loss and every gradient
# made of it. More directions cost more; *better* ones, and control variates (Nguyen & Ho 2023), cost
# nearly nothing. Here is what each buys on three problems, then a gradient flow, a generator in a plain
# PyTorch loop, and the rest of what the distance can do. Half a minute on one CPU core.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

from genflow import plot_flow
from genflow.data import Shapes
from genflow.directions import Isotropic
from genflow.distance import SlicedWasserstein, Wasserstein
from genflow.flow import gradient_flow
from genflow.loss import SampleDistance
from genflow.model import PushForward
from genflow.network import MLP
from genflow.source import Gaussian, Moons
from genflow.variate import Harmonics, Lower, Quadratic, Upper

draw = torch.Generator().manual_seed(0)

# %% [markdown]
# ## One import
#
# Points of any number on each side, in any dimension. The value is $SW_2^2$ unless `root=True`; gradients
# reach both sides.

# %%
x = torch.randn(500, 3, generator=draw)
y = torch.randn(400, 3, generator=draw) + 1
SlicedWasserstein()(x, y, generator=draw)

# %% [markdown]
# ## Noise against projections
#
# Three pairs of clouds with 500 points each: a sphere and a torus around one centre, where shapes
# alone differ; two Gaussians in 32 dimensions, each with axes of its own; odd against even handwritten
# digits. We ask every estimator 25 times, with new directions each time, and compare with 20,000 directions.


# %%
def torus(n):
    around, along = 2 * torch.pi * torch.rand(2, n, generator=draw)
    ring = 1 + 0.35 * around.cos()
    return torch.stack([ring * along.cos(), ring * along.sin(), 0.35 * around.sin()], 1)


def gaussian(scale):
    spread = scale * 0.95 ** torch.arange(32)
    axes = torch.linalg.qr(torch.randn(32, 32, generator=draw))[0]
    return torch.randn(500, 32, generator=draw) * spread @ axes


digits, labels = load_digits(return_X_y=True)
odd, even = (torch.tensor(digits[labels % 2 == k][:500] / 16).float() for k in (1, 0))
ball = nn.functional.normalize(torch.randn(500, 3, generator=draw), dim=1)
pairs = {
    "sphere and torus, 3-D": (ball, torus(500)),
    "two Gaussians, 32-D": (gaussian(3.0), gaussian(2.0) + 2 / 32**0.5),
    "digits, 64-D": (odd, even),
}
estimators = {
    "plain Monte Carlo": dict(directions=Isotropic(), variate=None),
    "published lower bound (LCV)": dict(directions=Isotropic(), variate=Lower("published")),
    "published upper bound (UCV)": dict(directions=Isotropic(), variate=Upper("published")),
    "lower bound, coefficient 1": dict(directions=Isotropic(), variate=Lower()),
    "three quadratic forms, regression": dict(directions=Isotropic(), variate=Quadratic()),
    "spherical harmonics (3-D)": dict(directions=Isotropic(), variate=Harmonics()),
    "even directions, no variate": dict(variate=None),
    "projected Gaussians, random directions": dict(directions=Isotropic()),
    "the default: both": {},
}
counts, repeats = (10, 30, 100), 25
errors = {}
for pair, (x, y) in pairs.items():
    truth = SlicedWasserstein(20_000)(x, y, generator=draw)
    for name, options in tqdm(estimators.items(), pair, mininterval=2, leave=False):
        if "3-D" in name and x.shape[1] > 3:  # there are too many of them in more dimensions
            continue
        for count in counts:
            sw = SlicedWasserstein(count, **options)
            found = torch.stack([sw(x, y, generator=draw) for _ in range(repeats)])
            errors[pair, name, count] = float(((found / truth - 1) ** 2).mean().sqrt())

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 5), sharey=True, layout="constrained")
for axis, pair in zip(axes, pairs):
    for k, name in enumerate(estimators):
        curve = [errors.get((pair, name, count), float("nan")) for count in counts]
        style = (
            dict(lw=2.5, color="C3")
            if name.startswith("the")
            else dict(lw=1.2, color=f"C{k + (k > 2)}")
        )
        axis.plot(counts, curve, marker="o", ms=4, label=name, **style)
    axis.set(xscale="log", yscale="log", title=pair, xlabel="projections")
    axis.set_xticks(counts, counts)
    axis.grid(alpha=0.3)
axes[0].set_ylabel("relative error (RMS)")
_ = figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
)

# %%
for pair in pairs:
    plain, ours = (errors[pair, name, 10] for name in ("plain Monte Carlo", "the default: both"))
    worth = float(f"{10 * (plain / ours) ** 2:.1g}")
    print(f"{pair:<22} 10 projections of the default do the work of about {worth:,.0f} plain ones")

# %% [markdown]
# A control variate is a function of the direction that varies as the distance does, and whose mean is
# known; what is left to estimate is the difference. The *lower bound* is the distance of the projected
# means: right for the digits, of little use where means agree or shapes differ. *Harmonics* need many
# projections and few dimensions. *Even directions* (a spiral on the sphere in 3-D, orthogonal frames above)
# begin to pay when there are about as many of them as dimensions. The *projected Gaussians* with the means
# and covariances of both sets lie below the distance on every direction for any sets at all; their mean
# is taken over thousands of further directions, which touch no points and cost little. The estimate is
# unbiased, and never negative. Together they are the default.
#
# ## A gradient flow
#
# Points that move down the gradient of the distance turn one cloud into the other. `gradient_flow` is a
# loop of plain gradient descent; `root=True` makes distant points move at one speed. Ten projections a
# step.

# %%
x, y = (cloud.float() for cloud in Shapes(n=1000, shift=12.0, size=4.0).clouds())
flows = {}
for name, options in (("plain Monte Carlo", estimators["plain Monte Carlo"]), ("the default", {})):
    sw = SlicedWasserstein(10, root=True, **options)
    flows[name] = gradient_flow(x, y, sw, steps=160, lr=0.2, keep=17, generator=draw)
flow = flows["the default"]
shown = [0, 6, 10, 16]
plot_flow.cloud_stages(flow.trajectory[shown], y, [f"after {flow.steps[k]} steps" for k in shown])

# %% [markdown]
# The loss along the way is an estimate as well. From plain directions one cannot tell from step to step
# whether it falls; and since the root divides every gradient by it, its noise is noise in the size of the
# steps. (At the end both tremble: steps of one length cannot settle.)

# %%
_, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for name, colour in (("plain Monte Carlo", "C0"), ("the default", "C3")):
    axis.plot(flows[name].values, lw=1, color=colour, label=name)
axis.set(xlabel="step", ylabel="estimated $SW_2$, 10 projections", yscale="log")
axis.legend(frameon=False)
axis.grid(alpha=0.3)

# %% [markdown]
# `python train.py experiment=gradient_flow` does the same with checkpoints and an animation, and
# `experiment=colour_transfer` moves the colours of one photograph onto those of another.
#
# ## As a loss, in your own loop
#
# No Lightning, no configuration: a small network maps noise to two moons in one evaluation, and the
# distance between what it makes and the data is the loss.

# %%
moons = Moons()
torch.manual_seed(0)
net = nn.Sequential(
    nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
    nn.Linear(128, 2),
)  # fmt: skip
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
steps = 800
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
sw = SlicedWasserstein(projections=16)
for _ in tqdm(range(steps), mininterval=2, leave=False):
    z, x = torch.randn(512, 2, generator=draw), moons.sample(512, draw)
    loss = sw(net(z), x, generator=draw)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

# %%
with torch.no_grad():
    made = net(torch.randn(1000, 2, generator=draw))
data, more = moons.sample(1000, draw), moons.sample(1000, draw)
print(
    f"W2 to the moons {Wasserstein()(made, data):.2f}, of two samples of them {Wasserstein()(more, data):.2f}"
)
_, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.scatter(*data.T, s=3, color="0.75", label="data")
axis.scatter(*made.T, s=3, color="C3", label="made from noise")
axis.set(aspect="equal")
axis.set_axis_off()
_ = axis.legend(frameon=False, markerscale=3)

# %% [markdown]
# A map without jumps cannot tear the noise in two, so a few points stay between the moons.
#
# `loss.SampleDistance` is the same loss with what a training wants around it: events of any shape are
# flattened, samples with labels are compared class by class, and over several processes (DDP) all samples
# are compared with all data. It takes the networks `f(t, x)` of this library; `PushForward` makes of one a model
# to save, load and sample from.

# %%
model = PushForward(Gaussian(2), MLP(2))
print(SampleDistance(sw)(model.network, model.source.sample(512, draw), data, generator=draw))
model.sample(1000, generator=draw).shape

# %% [markdown]
# ## Weights, sizes, batches, errors
#
# On every direction the distance is exact, for sets of different sizes and for weighted points too. A
# point of weight two is two points:

# %%
x, y = torch.randn(300, 5, generator=draw), torch.randn(200, 5, generator=draw) + 0.5
weight = torch.randint(1, 4, (300,), generator=draw)
copies = x.repeat_interleave(weight, 0)
print("weighted:", sw(x, y, weights_x=weight, generator=torch.Generator().manual_seed(1)))
print("copied:  ", sw(copies, y, generator=torch.Generator().manual_seed(1)))

# %% [markdown]
# The last dimension is the space, the one before it the points; anything in front is a batch, with one
# distance for each. Images are therefore flattened first, by `images.flatten(1)`.

# %%
sw(torch.randn(4, 300, 5, generator=draw), torch.randn(4, 200, 5, generator=draw), generator=draw)

# %% [markdown]
# `estimate` repeats the estimate with fresh directions and tells the standard error of the mean (over
# directions: the points are taken as given).

# %%
for name in ("plain Monte Carlo", "the default: both"):
    value, error = SlicedWasserstein(50, **estimators[name]).estimate(odd, even, generator=draw)
    print(f"{name:<18} {value:.5f} +- {error:.5f}")
