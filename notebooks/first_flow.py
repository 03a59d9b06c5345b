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
# # A first flow
#
# Eight Gaussians flow into two moons. We import one loss into a plain PyTorch loop, look at what was
# learned, save it, load it back, and sample from it in every way. It takes about a minute on two CPU cores.

# %%
import torch
from tqdm import tqdm

import genflow
from genflow import plot
from genflow.coupling import ExactOT, Gibbs
from genflow.diagnostics import path_report
from genflow.distance import Wasserstein
from genflow.interpolant import Linear
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Adaptive, Euler, Heun
from genflow.source import EightGaussians, Moons

_ = torch.manual_seed(0)

# %% [markdown]
# ## One loss, your own loop
#
# A method is a choice of parts: **interpolant x coupling x time x target**. This is OT-CFM. The network may
# be any `net(t, x)`; the loss owns no parameters and needs torch alone.

# %%
source, data = EightGaussians(), Moons()
loss = Matching(interpolant=Linear(), coupling=ExactOT())


def train(loss, steps=2500, seed=0, quiet=False):
    torch.manual_seed(seed)
    net = MLP(dim=2, width=128, depth=3)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), mininterval=2, disable=quiet):
        x0, x1 = source.sample(256, draw), data.sample(256, draw)
        value = loss(net, x0, x1, generator=draw)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return net


net = train(loss)

# %% [markdown]
# ## A model is something to sample from
#
# `Generator` puts a source, a process and a solver together. `trajectory=True` keeps the states in between.

# %%
model = Generator(source, SDE(net), Heun(steps=30)).eval()
draw = torch.Generator().manual_seed(1)
x0 = source.sample(2000, draw)
path = model.sample(x0=x0, trajectory=True)
plot.flow(x0, data.sample(2000, draw), path[-1], path, "OT-CFM")

# %% [markdown]
# ## Save, load, sample
#
# The file holds a description of the model and its weights; no pickle runs when it is read. Everything random
# takes a generator, so that samples can be repeated.

# %%
genflow.save(model, "first_flow.ckpt")
model = genflow.load("first_flow.ckpt")
genflow.spec(model)

# %%
x = model.sample(1000, generator=torch.Generator().manual_seed(2))
five = model.sample(1000, solver=Euler(), steps=5, generator=torch.Generator().manual_seed(2))
precise = model.sample(1000, solver=Adaptive(), generator=torch.Generator().manual_seed(2))
print("5 Euler steps against an adaptive solver, largest gap:", f"{(five - precise).abs().max():.3f}")

back = model.sample(x0=precise, solver=Adaptive(), reverse=True)
again = model.sample(x0=back, solver=Adaptive())
print("to the source and back, largest gap:", f"{(again - precise).abs().max():.1e}")

# %% [markdown]
# ## The same problem, three couplings
#
# Swap one part. Plain CFM couples at random and its paths bend; exact OT straightens them; Gibbs weights
# (weighted CFM) straighten them at the price of plain CFM, but tilt the marginals: watch the path energy fall
# towards, or below, $W_2^2$ while the distance to the data stays larger than that of OT-CFM.

# %%
test = data.sample(1000, draw)
x0 = source.sample(1000, draw)
pair = Wasserstein()(x0, test)
print(f"squared distance of source and data: {pair**2:.2f}")

couplings = {
    "independent": None,
    "exact OT": ExactOT(),
    "Gibbs": Gibbs(ess=0.5).prepare(source.sample(5000, draw), data.sample(5000, draw)),
}
for name, coupling in couplings.items():
    net = train(Matching() if coupling is None else Matching(coupling=coupling), steps=1000, quiet=True)
    process = SDE(net)
    samples = Generator(source, process, Heun(30)).sample(x0=x0)
    report = path_report(process, x0, steps=30)
    print(
        f"{name:<12} W2 to data {Wasserstein()(samples, test):.2f}   "
        f"path energy {report.energy:5.2f}   bend {report.straightness:.2f}"
    )
print(f"{'floor':<12} W2 to data {Wasserstein()(data.sample(1000, draw), test):.2f}")
