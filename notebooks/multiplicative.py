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
# # Noise that multiplies
#
# Concentrations, intensities, prices and pixels are positive. A diffusion that adds noise to them leaves the
# positive numbers at once; one that multiplies them by log-normal noise never does. Here it is trained on two
# positive numbers whose law is known, sampled in two ways (one of which loses its positivity, so that we see
# why the other is the default), asked for densities, and then trained on digits by class. About a minute on
# one CPU core.

# %%
import warnings

import matplotlib.pyplot as plt
import torch

from genflow import plot
from genflow.data import Digits
from genflow.diagnostics import class_accuracy
from genflow.interpolant import GeometricBrownian, GeometricVolatility
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP, Guided, UNet, guidance
from genflow.process import ReversedGeometric
from genflow.solver import AmbientEuler, DaleLangevin, Heun
from genflow.source import LogNormal, LogNormalMixture
from genflow.target import Noise
from genflow.time import Uniform
from genflow.transform import Positive

torch.manual_seed(0)
draw = torch.Generator().manual_seed(0)
law = LogNormalMixture([[-0.5, 0.3], [0.8, -0.6]], covariances=[0.04, 0.09], weights=[0.4, 0.6])

# %% [markdown]
# ## Forwards
#
# The motion is $dX=\mu X\,ds+\sigma X\odot dW$, so that data are multiplied by $e^{M+\sqrt Vz}$. In genflow noise is at
# $t=0$ and data at $t=1$, as for every other method. Rows of the picture go from data to noise; the axes are
# logarithmic, since at the end the points span six decades.

# %%
path = GeometricBrownian(GeometricVolatility(sigma_min=0.02, sigma_max=2.5))
x1 = law.sample(1500, draw)
figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained", sharex=True, sharey=True)
for axis, t in zip(axes, (1.0, 0.6, 0.3, 0.0)):
    x = path.sample(torch.full((1500,), t), x1, x1, generator=draw).x
    axis.scatter(*x.T, s=3, linewidths=0)
    axis.set(xscale="log", yscale="log", title=f"t = {t}, smallest {x.min():.1e}")
plt.show()

# %% [markdown]
# ## Training
#
# What is learned is the noise, by plain regression: with the weight that this implies it is denoising score
# matching of the Hyvarinen score $x\odot\nabla\log p$. The network sees standardised logarithms, whose mean and
# variance `prepare` measures; the prior takes its own from the data, too.

# %%
process = ReversedGeometric(MLP(2, width=128), path, dim=2)
model = Generator(LogNormal(2, path), process, DaleLangevin(250), Positive("identity"))
loss = Matching(path, time=Uniform(margin=1e-3), target=Noise())


def train(model, batches, steps, lr=2e-3):
    """A plain loop; `train.py` does the same with averaged weights, checkpoints and figures."""
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    model.train()
    for _ in range(steps):
        x, cond = next(batches)
        adam.zero_grad()
        value = loss(model.process, x, x, cond=cond)
        value.backward()
        adam.step()
        decay.step()
    return model.eval()


def pairs():
    while True:
        yield law.sample(256, draw), None


x1 = law.sample(20_000, draw)
model.prepare(x1, x1)
_ = train(model, pairs(), steps=2500)

# %%
start = model.source.sample(1500, draw)
with torch.no_grad():
    states = model.sample(x0=start, trajectory=True, generator=draw)
plot.flow(start, law.sample(1500, draw), states[-1], states[:, :100])

# %% [markdown]
# ## Two samplers
#
# Both solve the same reverse equation. `AmbientEuler` takes Euler's steps of the states; a factor
# $1+f\delta+\sigma\sqrt\delta\,\xi$ may be negative, and then a concentration is, too. `DaleLangevin` takes the
# steps of the logarithms, $X'=X\odot e^{\dots}$: positive whatever the step. `KS` is the
# largest gap between distribution functions, of the first coordinate, with that of exact draws below it.


# %%
def ks(x):
    share = law.cdf(x).sort(0).values[:, 0]
    return float((share - torch.linspace(0, 1, len(x))).abs().max())


grid = (6, 12, 25, 50, 100, 250)
found = {"AmbientEuler": [], "DaleLangevin": []}
warnings.filterwarnings("ignore", "AmbientEuler took")  # it says what we are about to count
with torch.no_grad():
    for steps in grid:
        for name, solver in (
            ("AmbientEuler", AmbientEuler(steps)),
            ("DaleLangevin", DaleLangevin(steps)),
        ):
            made = model.solve(2000, solver=solver, generator=draw)
            lost = made.nonpositive if name == "AmbientEuler" else float((made.x <= 0).float().mean())
            found[name].append((ks(made.x), lost))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, values in found.items():
    gaps, lost = zip(*values)
    axes[0].loglog(grid, gaps, "o-", ms=4, label=name)
    axes[1].semilogx(grid, lost, "o-", ms=4, label=name)
axes[0].axhline(ks(law.sample(2000, draw)), color="0.4", ls=":", label="exact draws")
axes[0].set(xlabel="steps", title="KS")
axes[1].set(xlabel="steps", title="share of coordinates lost to zero or below")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Side by side at 50 steps. Ambient points that have crossed zero cannot be drawn on these axes, which is the
# point; the title has how many ended there.

# %%
with torch.no_grad():
    sides = {
        s: model.sample(1500, solver=s, generator=draw) for s in (AmbientEuler(50), DaleLangevin(50))
    }
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharex=True, sharey=True)
for axis, (name, x) in zip(
    axes, [("data", law.sample(1500, draw)), *((type(s).__name__, x) for s, x in sides.items())]
):
    inside = (x > 0).all(1)
    axis.scatter(*x[inside].T, s=3, linewidths=0)
    axis.set(xscale="log", yscale="log", xlim=(0.05, 20), ylim=(0.05, 20))
    axis.set_title(f"{name}: {int((~inside).sum())} of 1500 lost")
plt.show()

# %% [markdown]
# ## Densities
#
# The probability-flow ODE in logarithms, by the change of variables, gives `log_prob` in the units of the data.
# Beside it the true one.

# %%
line = torch.linspace(0.02, 4, 60)
mesh = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
ours = model.log_prob(mesh, solver=Heun(30)).reshape(60, 60)
true = law.log_prob(mesh).reshape(60, 60)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for axis, (name, value) in zip(axes, (("learned", ours), ("true", true))):
    axis.contourf(line, line, value.exp(), levels=12, cmap="Greys")
    axis.set(title=f"{name} density", aspect="equal", xlim=(0, 4), ylim=(0, 2.5))
plt.show()
x = law.sample(500, draw)
gap = law.log_prob(x) - model.log_prob(x, solver=Heun(30))
print(f"KL(true | learned) = {gap.mean():.4f} +- {gap.std() / len(gap) ** 0.5:.4f} nats")
mass = float(ours.exp().sum()) * float(line[1] - line[0]) ** 2
print(
    f"mass of the square: learned {mass:.3f}, true {float(true.exp().sum() * (line[1] - line[0]) ** 2):.3f}"
)

# %% [markdown]
# ## Digits
#
# Pixels in [-1, 1] become [1, 2] by `Positive(low=-1)`; logarithms then span 0.69, so `sigma_max=2` drowns them.
# The network is given the class and sometimes not (`Guided`), so that the class can be exaggerated later.

# %%
brightness = GeometricBrownian(GeometricVolatility(sigma_max=2.0))
noise = LogNormal([1, 8, 8], brightness)
train_set, test_set = (Digits(noise, labels=True).marginals(split)[-1] for split in ("train", "test"))
images, labels = train_set.x[train_set.rows], train_set.cond[train_set.rows]
field = Guided(UNet([1, 8, 8], width=16, classes=11), empty=10)
process = ReversedGeometric(field, brightness)
painter = Generator(noise, process, DaleLangevin(50, "ancestral"), Positive("one_plus", low=-1.0))
painter.prepare(images, images)
positive = painter.transform(images)


def batches():
    while True:
        rows = torch.randint(len(images), (64,), generator=draw)
        yield positive[rows], labels[rows]


_ = train(painter, batches(), steps=600, lr=4e-3)

# %% [markdown]
# One reverse path a row, from the prior on the left to the image on the right. Every state is positive; brightness
# outside the range of the data is clipped for the eye alone.

# %%
torch.set_grad_enabled(False)
asked = torch.arange(10)
with guidance(painter, 2.0):  # what that is comes next
    states = painter.sample(cond=asked, trajectory=True, generator=draw)
columns = torch.linspace(0, 50, 11).round().long()
figure, axes = plt.subplots(5, 11, figsize=(11, 5), layout="constrained")
for row, k in zip(axes, (0, 2, 4, 6, 8)):
    for axis, step in zip(row, columns):
        axis.imshow(states[step, k, 0], cmap="gray", vmin=-1, vmax=1)
        axis.set_axis_off()
for axis, step in zip(axes[0], columns):
    axis.set_title(f"t = {step / 50:.1f}", fontsize=9)
plt.show()

# %% [markdown]
# ## Asked for a class
#
# A column for each digit. At `scale` 1 the network is the conditional one; above, the class is exaggerated, for which
# variety is the price. The classifier is scikit-learn's, trained on real digits.

# %%
known = (images, labels)
held = (test_set.x[test_set.rows], test_set.cond[test_set.rows])
figure, axes = plt.subplots(1, 3, figsize=(14, 3.4), layout="constrained")
asked = torch.arange(10).repeat(40)
for axis, scale in zip(axes, (0.0, 1.0, 3.0)):
    with guidance(painter, scale):
        made = painter.sample(cond=asked, generator=draw)
    found = class_accuracy(known, held, (made, asked))
    tiles = torch.nn.functional.pad(made[:60, 0], (1, 1, 1, 1), value=1.0)
    sheet = tiles.reshape(6, 10, 10, 10).transpose(1, 2).reshape(60, 100)
    axis.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    axis.set_title(f"scale {scale:g}: {found.samples:.0%} of the class asked for")
    axis.set_axis_off()
plt.show()
print(f"real test images: {found.real:.0%}")

# %% [markdown]
# ## Few evaluations
#
# All of these take the same network. Ten steps are enough for positive ones; the ambient sampler is still lost at fifty.

# %%
asked = torch.arange(10).repeat(20)
for steps in (10, 25, 50):
    scores = []
    for solver in (DaleLangevin(steps, "ancestral"), DaleLangevin(steps), AmbientEuler(steps)):
        made = painter.solve(len(asked), cond=asked, solver=solver, generator=draw)
        accuracy = class_accuracy(known, held, (made.x, asked)).samples
        lost = "" if made.nonpositive is None else f", {made.nonpositive:.1%} lost"
        scores.append(
            f"{type(solver).__name__} {getattr(solver, 'increments', '')} {accuracy:.0%}{lost}"
        )
    print(f"{steps:>3} steps: " + "; ".join(scores))
