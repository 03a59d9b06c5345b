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
# # When do weights bend the data?
#
# Weighted flow matching (Calvo-Ordoñez et al. 2025) draws independent pairs and weights them by
# $e^{-|x_0-x_1|^2/\varepsilon}$: paths almost as straight as those of optimal transport, at the price of
# plain flow matching. But weights move mass. What is learnt is a plan between the *tilted* laws
# $\tilde\mu\propto\mu k$ and $\tilde\nu\propto\nu l$, where $k(x)$ is the mean weight of the pairs of $x$.
# Here we see when that matters, how to notice, and what to do. A minute on two CPU cores.

# %%
import torch
from tqdm import tqdm

from genflow import plot
from genflow.coupling import ExactOT, Gibbs, Independent
from genflow.diagnostics import class_accuracy, tilt_report
from genflow.distance import Wasserstein
from genflow.loss import Matching
from genflow.model import Generator, Tilt
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Euler, Heun
from genflow.source import EightGaussians, Empirical, Gaussian, Moons

draw = torch.Generator().manual_seed(0)
noise, ring, moons = Gaussian(2), EightGaussians(), Moons(noise=0.2)

# %% [markdown]
# ## Look before you train
#
# `tilt_report` needs no network, only samples. From noise to moons the ends of the moons are far from
# everything, so their pairs get small weights and the ends fade.

# %%
x0, x1 = noise.sample(5000, draw), moons.sample(5000, draw)
gibbs = Gibbs(ess=0.5).prepare(x0, x1)
report = tilt_report(gibbs, x0, x1)
print(report.note)
plot.tilt(report.x0, report.x1, report.mass0, report.mass1, title="weights with half the sample size")

# %% [markdown]
# ## The effective sample size does not tell
#
# Three pairs of laws, one effective sample size, very different tilts. From the ring to the moons nearly
# every point has the same mean distance to the other side; from noise to moons it has not. On a circle
# that is carried to itself the weights bend nothing at all, whatever their temperature.

# %%
angle = 2 * torch.pi * torch.rand(2, 5000, generator=draw)
circle = torch.stack([angle.cos(), angle.sin()], 2)
pairs = {
    "ring to moons": (ring.sample(5000, draw), moons.sample(5000, draw)),
    "noise to ring": (noise.sample(5000, draw), ring.sample(5000, draw)),
    "noise to moons": (x0, x1),
    "circle to circle": (circle[0], circle[1]),
}
print(f"{'':<18}{'ess':>6}{'KL at x0':>10}{'KL at x1':>10}")
for name, (a, b) in pairs.items():
    r = tilt_report(Gibbs(ess=0.5).prepare(a, b), a, b)
    print(f"{name:<18}{r.ess:6.2f}{r.kl_tilt_x0:10.3f}{r.kl_tilt_x1:10.3f}")

# %% [markdown]
# ## The cure
#
# `correction="gaussian"` adds the entropic potentials of two Gaussians with the means and covariances of
# the data: fitted once, free at every step, exact for Gaussian laws. `correction="sinkhorn"` computes the
# potentials of each batch.

# %%
cures = {c: Gibbs(ess=0.5, correction=c).prepare(x0, x1) for c in ("none", "gaussian", "sinkhorn")}
for name, coupling in cures.items():
    r = tilt_report(coupling, x0, x1)
    print(
        f"{name:<9} ess {r.ess:.2f}   KL at x1 {r.kl_tilt_x1:.4f}   spread of x1 {r.std_shift_x1:+.1%}"
    )


# %%
def train(loss, source, data, labels=False, steps=1200):
    torch.manual_seed(0)
    net = MLP(2, width=64, depth=3, classes=8 if labels else None)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), mininterval=2, leave=False):
        x0, cond = source.sample(256, draw), None
        if labels:
            x1, cond = data.sample_labelled(256, draw)
        else:
            x1 = data.sample(256, draw)
        value = loss(net, x0, x1, cond=cond, generator=draw)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return SDE(net)


test, start = moons.sample(2000, draw), noise.sample(2000, draw)
models = {}
for name in ("independent", "none", "gaussian"):
    coupling = cures.get(name, Independent())
    models[name] = Generator(noise, train(Matching(coupling=coupling), noise, moons), Heun(30)).eval()
    exact = Wasserstein()(models[name].sample(x0=start), test)
    coarse = Wasserstein()(models[name].sample(x0=start, solver=Euler(5)), test)
    print(f"{name:<11} W2 to the moons {exact:.2f}   with 5 Euler steps {coarse:.2f}")
print(f"{'floor':<11} W2 of two samples {Wasserstein()(moons.sample(2000, draw), test):.2f}")

# %%
plot.tilt(
    report.x0, report.x1, report.mass0, report.mass1, models["none"].sample(2000, generator=draw),
    "uncorrected weights: samples are neither the data nor the tilted data",
)  # fmt: skip

# %% [markdown]
# ## The second bias, and a start that removes it
#
# Where the source is tilted too, samples are not even the tilted data: the field carries $\tilde\mu$, but
# sampling starts at $\mu$. Two Gaussians that lie apart show it. `Tilt` starts at $\tilde\mu$ by importance
# resampling, for a model that is already trained; the output is then the tilted law, a single known bias.
# (A correction removes both.)

# %%
cloud = Empirical(torch.tensor([3.0, -1.5]) + 0.8 * torch.randn(20_000, 2, generator=draw))
a, b = noise.sample(5000, draw), cloud.sample(5000, draw)
apart = Gibbs(epsilon=4.0)
r = tilt_report(apart, a, b)
print(f"KL(tilted | given): {r.kl_tilt_x0:.2f} nats at x0, {r.kl_tilt_x1:.2f} at x1")

model = Generator(noise, train(Matching(coupling=apart), noise, cloud), Heun(30)).eval()
tilted = r.x1[torch.multinomial(r.mass1, 2000, replacement=True, generator=draw)]
from_source = model.sample(2000, generator=draw)
model.tilt = Tilt(apart).prepare(*model.encode(a, b))
from_tilted = model.sample(2000, generator=draw)
for name, samples in (("source", from_source), ("tilted source", from_tilted)):
    to_tilted, to_data = (Wasserstein()(samples, y) for y in (tilted, cloud.sample(2000, draw)))
    print(
        f"started from the {name:<14} W2 to the tilted data {to_tilted:.2f}, to the data {to_data:.2f}"
    )

# %% [markdown]
# ## Conditions: when optimal transport bends
#
# Plans between whole batches ignore labels: each class is paired with its own sector of the noise, and a
# sampler that starts anywhere asks the network for pairs that it never saw. Pairing *within* each class
# keeps the noise independent of the class.

# %%
x1, labels = ring.sample_labelled(4000, draw)
fresh, wanted = ring.sample_labelled(2000, draw)
for conditions in ("ignore", "within"):
    coupling = ExactOT(conditions=conditions)
    r = tilt_report(coupling, noise.sample(2000, draw), x1[:2000], cond=labels[:2000])
    process = train(Matching(coupling=coupling), noise, ring, labels=True)
    model = Generator(noise, process, Heun(30)).eval()
    samples = model.sample(cond=wanted, generator=draw)
    found = class_accuracy((x1, labels), (fresh, wanted), (samples, wanted))
    print(f"conditions={conditions!r}: {found.samples:.1%} of the samples in the class asked for")
    print(
        f"  shift of the source given the class {r.class_shift_x0:.2f}, by chance {r.class_shift_chance:.2f}"
    )
    print(f"  note: {r.note}")
