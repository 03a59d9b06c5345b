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
# # A bridge in one cell
#
# A Schrödinger bridge is the law of a diffusion $dX=g\,dt+\sqrt\varepsilon\,dW$ that starts as one cloud,
# ends as another, and stays as close to plain Brownian motion as it can. If its potential is a mixture of
# Gaussians (Korotin, Gushchin & Burnaev 2024), drift, plan, transitions and densities are closed forms:
# no network, no solver, and nothing to tune. Here one is fitted, looked at, asked and run backwards, at
# several temperatures. Twenty seconds on one CPU core.

# %%
import warnings

import matplotlib.pyplot as plt
import torch

import genflow
from genflow import plot_flow, plot_light
from genflow.distance import Wasserstein
from genflow.interpolant import BrownianBridge
from genflow.loss import LightBridgeKL, Matching
from genflow.model import Generator
from genflow.process import LightBridge
from genflow.solver import Euler, Exact
from genflow.source import Gaussian, SwissRoll
from genflow.target import Drift

warnings.filterwarnings("ignore", "IProgress not found")  # a progress bar that Pyro does not draw
torch.set_grad_enabled(False)  # we only look, until the end
draw = torch.Generator().manual_seed(0)
source, roll = Gaussian(2), SwissRoll(noise=0.8, scale=1 / 7.5)
x0, x1 = source.sample(5000, draw), roll.sample(5000, draw)

# %% [markdown]
# ## The fit
#
# Two unpaired tables go in. K-means starts it, a fixed-point iteration without a learning rate does
# nearly all of the work in a few passes, and Adam polishes. The objective is the Kullback-Leibler
# divergence of the true bridge from this one, in nats, up to a constant that nobody knows.

# %%
bridge = LightBridge(2, components=50, epsilon=0.1).fit(x0, x1, held_out=0.2, generator=draw)
plot_light.trace(bridge.history)

# %% [markdown]
# ## Its paths
#
# The source, a few paths, and where 1,000 of them end. Colours are those of the start. The starts are
# new: the fit has not seen them, and nothing is fitted again. The paths are exact: the end is drawn from the
# plan, and what lies between is a Brownian bridge.

# %%
starts = source.sample(1000, draw)
plot_light.paths(bridge, starts, x1, draw)

# %%
ends = bridge.plan(starts).sample(generator=draw)
floor = Wasserstein()(roll.sample(1000, draw), roll.sample(1000, draw))
print(f"W2 of the ends to the roll {Wasserstein()(ends, roll.sample(1000, draw)):.3f}, ", end="")
print(f"of two samples of the roll {floor:.3f}")

# %% [markdown]
# ## The plan is a distribution
#
# `bridge.plan(x0)` is the law of the end for every row of `x0`: a `torch` distribution, a mixture of
# Gaussians whose weights depend on the start. Filled regions hold half and nine tenths of it.

# %%
few = torch.tensor([[0.0, 0.0], [-1.0, 0.5], [2.0, 1.0], [3.0, -2.5]])
plot_light.plan(bridge, few, x1)

# %%
plan = bridge.plan(few)
print("means\n", plan.mean)
print("covariance of the first\n", plan.covariance_matrix[0])
print("log-densities at their means", plan.log_prob(plan.mean))
print("draws", tuple(plan.sample((100,), generator=draw).shape))

# %% [markdown]
# A mean says little where a plan is bent: the ends of the first start lie along an arc.
#
# `.mixture()` is the same law in torch's own classes, of which Pyro has namesakes. Say we know where a
# particle started and see its end with an error of 0.3: where did it end?

# %%
import pyro
import pyro.distributions as dist

law = bridge.plan(few[:1]).mixture()
prior = dist.MixtureSameFamily(law.mixture_distribution, law.component_distribution)
seen = torch.tensor([0.2, -0.2])


def model(particles=5000):
    with pyro.plate("particles", particles):
        end = pyro.sample("end", prior)
        pyro.sample("seen", dist.Normal(end, 0.3).to_event(1), obs=seen.expand_as(end))


pyro.set_rng_seed(0)
trace = pyro.poutine.trace(model).get_trace()
trace.compute_log_prob()
weight = trace.nodes["seen"]["log_prob"].softmax(0)
print("before:", plan.mean[0], " seen:", seen, " after:", weight @ trace.nodes["end"]["value"])

# %% [markdown]
# ## Any time, any step
#
# `sample_at` draws the state at one time; `transition` goes from any time to any other in one exact step, and
# `drift` is what an SDE solver needs, on all of [0, 1]. A `Generator` puts a source in front. Below, distances of
# 1,000 points to the roll; two samples of the roll itself are as far apart.

# %%
times = [0.0, 0.3, 0.6, 0.85, 1.0]
clouds = torch.stack([bridge.sample_at(starts, t, generator=draw) for t in times])
plot_flow.cloud_stages(clouds, x1, [f"t = {t}" for t in times])

# %%
for solver, steps in ((Exact(), 1), (Euler(), 3), (Euler(), 10), (Euler(), 50)):
    made = Generator(source, bridge, solver).sample(1000, steps=steps, generator=draw)
    distance = Wasserstein()(made, roll.sample(1000, draw))
    print(f"{type(solver).__name__:<5} {steps:>3} steps: W2 to the roll {distance:.3f}")

# %% [markdown]
# ## Backwards
#
# From the roll to where the paths came from. This needs the law of the start: the rows of the source that the fit
# has kept (`bridge.anchors`). The starts are drawn among them, with their exact odds.

# %%
data = roll.sample(1000, draw)
back = torch.stack([bridge.transition(1.0, t, data, generator=draw) for t in (0.85, 0.5, 0.0)])
plot_flow.cloud_stages(torch.cat([data[None], back]), x0, [f"t = {t}" for t in (1.0, 0.85, 0.5, 0.0)])

# %%
again = Generator(source, bridge, Exact()).sample(x0=data, reverse=True, generator=draw)
print("mean", again.mean(0), "standard deviation", again.std(0))

# %% [markdown]
# ## Temperature
#
# `epsilon` is the variance that noise adds in unit time, in squared units of the data. Small ones come near
# optimal transport: every start knows its end. Large ones forget where they came from. A fit for each:

# %%
bridges = [
    LightBridge(2, 50, epsilon).fit(x0, x1, steps=400, generator=draw)
    for epsilon in (0.01, 0.1, 0.5, 2.0)
]
plot_light.epsilons(bridges, starts, x1)

# %%
for other in bridges:
    moved = (other.plan(starts).mean - starts).square().sum(1).mean()
    spread = other.plan(starts).variance.sum(1).mean()
    print(
        f"epsilon {other.epsilon:<5g} mean squared way {moved:.2f}, spread of the ends of one start {spread:.2f}"
    )

# %% [markdown]
# ## How many components?
#
# `components="auto"` tries 1, 2, 5, 10, ... on four fifths of the rows until more no longer help on the
# fifth that it holds out. It takes the fewest within one standard error of the best.

# %%
auto = LightBridge(2, "auto", epsilon=0.1).fit(x0, x1, steps=300, generator=draw)
plot_light.choice(auto.history)

# %% [markdown]
# ## Other roads to the same bridge
#
# **A training loop.** The objective is a loss on unpaired minibatches. `python train.py
# experiment=light_swissroll` trains by it with Lightning and Hydra, for data of any size, and leaves a checkpoint,
# figures and metrics; `sigma=1 process.covariance=full` and the rest are overrides.
#
# **LightSB-M** (Gushchin, Kholkin, Burnaev & Korotin 2024): bridge matching on the closed-form drift. Whatever
# the pairs, it has the gradient of the objective times $2\varepsilon/d$, with more noise; so take it
# where pairs are given. The experiment is `lightm_swissroll`.

# %%
kl, matching = LightBridgeKL(), Matching(BrownianBridge(bridge.sigma), target=Drift(bridge.sigma))
torch.manual_seed(0)
fresh = LightBridge(2, 20, 0.1)  # not fitted


def slope(loss):
    value = loss(fresh, source.sample(50_000, draw), roll.sample(50_000, draw), generator=draw)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(fresh.parameters()))])


with torch.enable_grad():
    exact, noisy = slope(kl), slope(matching)
cosine = torch.nn.functional.cosine_similarity(exact, noisy, dim=0)
print(
    f"cosine {cosine:.3f}, ratio of norms {noisy.norm() / exact.norm():.3f}, 2 epsilon / d = {2 * 0.1 / 2}"
)

# %% [markdown]
# A bridge is saved like any model, and loads with torch alone.

# %%
genflow.save(Generator(source, bridge, Exact()), "light_bridge.ckpt")
made = genflow.load("light_bridge.ckpt").sample(2000, generator=draw)
_, axis = plt.subplots(figsize=(4, 4), layout="constrained")
axis.scatter(*x1[:2000].T, s=3, color="0.75", label="data")
axis.scatter(*made.T, s=3, color="C3", label="sampled")
axis.set(aspect="equal")
axis.set_axis_off()
_ = axis.legend(frameon=False, markerscale=3)
