"""The numbers of a finished run: a table on the screen and ``metrics.json``."""

from __future__ import annotations

import json
import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from genflow.checks import count
from genflow.data import Batch
from genflow.diagnostics import class_accuracy, energy_excess, path_report
from genflow.distance import BuresWasserstein, Wasserstein
from genflow.model.likelihood import EXACT, Likelihood
from genflow.seeds import stream
from genflow.solver import Euler
from genflow.specs import spec
from genflow.training.coordinates import coordinates
from genflow.training.datamodule import needs_rows
from genflow.training.heldout import HeldOut, heldout_distances
from genflow.training.module import Training
from genflow.training.table import table

LIKELIHOODS = 500
"""Test rows whose density is computed."""
PACKAGES = ("torch", "lightning", "hydra-core", "pot", "torchdiffeq")


class Report(L.Callback):
    """Evaluates the averaged model after training.

    ``metrics.json`` then holds (``null`` for a number that is not finite)

    - ``w2``, ``w2_euler5``: exact W2 between samples and test data, with the model's solver and
      with five Euler steps; ``w2_floor``: the same between two samples of the data (a model that
      follows no process has neither ``w2_euler5`` nor the numbers of its paths);
    - ``path_energy``, ``straightness``, ``w2_pair``, ``bures_pair`` (a lower bound of it) and
      ``path_energy_excess`` (signed), in the model's own space; in high dimensions ``w2_pair`` of
      samples is too large, and the excess too low: read ``bures_pair`` there;
    - ``ess`` of the coupling's weights, and its ``epsilon`` where it has one;
    - ``kl_tilt_x0``, ``kl_tilt_x1``, ``tv_tilt_x0``, ..., ``class_shift_x0``: how the coupling bends
      the laws (:class:`~genflow.diagnostics.TiltReport`), and ``note``, a sentence where it does;
    - ``class_accuracy`` of conditional samples by a classifier trained on the training data, and its
      ceiling ``class_accuracy_real`` on test data, where conditions are one label (those of
      ``ImageQuality`` take their place where it runs);
    - ``log_prob``, the mean over test data in nats, where the model has one (up to 16 dimensions);
    - ``field_velocity_rms``, ``field_velocity_relative``, ...: the true error of the learned fields,
      and ``kl_bound`` at its best ``kl_bound_epsilon``, where the laws of the data are known mixtures
      (:class:`~genflow.oracle.FieldError`);
    - ``test_objective`` of a learner that has one (``LightBridge``) on test data, in nats and the
      model's own space: a Kullback-Leibler divergence up to a constant of the data;
    - ``ks``, one number a coordinate, and ``nonpositive``, of a process on positive numbers where the
      law of the data knows its distribution functions (:class:`~genflow.source.LogNormalMixture`);
    - ``heldout_times``, ``heldout_energy`` and ``heldout_w1``, one number each for every held-out
      snapshot inside the training's span (:class:`~genflow.data.Snapshots`): half the energy distance
      and exact W1, in data units, between its rows and the states at that time of paths that start at
      rows of the first training snapshot;
    - of a process with its own ``trajectories`` (multi-marginal bridges) ``heldout_w2`` in place of the
      energy (:func:`~genflow.training.heldout.trajectory_distances`), ``parameters`` of its reference
      by name beside ``parameter_count``, and ``objective``, without ``w2_euler5`` and path numbers;
    - ``train_seconds`` and ``cpu_seconds`` (of all parts of a resumed run, the latter without the
      scores of :class:`~genflow.training.HeldOut`), ``seed``, ``solver``, ``nfe``, ``ema``,
      ``steps``, ``parameters`` (how many), ``versions``.

    Args:
        folder: where ``metrics.json`` goes.
        n: samples of each distance; exact OT takes time cubic in it.
        paths: also run paths for their energy and straightness, 200 evaluations of ``n`` rows and more:
            switch it off for large networks.
    """

    def __init__(self, folder: str = ".", n: int = 2000, paths: bool = True) -> None:
        count(self, 2, n=n)
        self.folder, self.n, self.paths = folder, n, paths
        self.metrics: dict[str, Any] = {}
        self._seconds, self._started = (0.0, 0.0), None

    def state_dict(self) -> dict[str, Any]:
        seconds, cpu_seconds = self._spent()
        return {"seconds": seconds, "cpu_seconds": cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = state_dict["seconds"], state_dict.get("cpu_seconds", 0.0)

    def _spent(self) -> tuple[float, float]:
        """Seconds of training so far, on the wall and on the processors."""
        if self._started is None:
            return self._seconds
        return tuple(k + now - then for k, now, then in zip(self._seconds, _clocks(), self._started))

    def on_train_start(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._started = _clocks()

    def on_train_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        self._seconds, self._started = self._spent(), None

    def setup(self, trainer: L.Trainer, pl_module: Training, stage: str) -> None:
        if stage == "fit":
            needs_rows(self, trainer)

    # after on_train_end, where the checkpoint is written: a report that fails must not lose it
    def on_fit_end(self, trainer: L.Trainer, pl_module: Training) -> None:
        if trainer.is_global_zero:
            print(f"\nevaluating {self.n} samples against test data ...", flush=True)
            training = pl_module.model.training
            pl_module.model.eval()
            found = self.evaluate(trainer, pl_module)
            self.metrics = {name: _finite(value) for name, value in found.items()}
            pl_module.model.train(training)
            folder = Path(self.folder)
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.metrics, indent=2, allow_nan=False)
            (folder / "metrics.json").write_text(text + "\n")
            print("\n" + table(self.metrics))
            if self.metrics.get("note"):
                print(f"\n  note: {self.metrics['note']}")

    def evaluate(self, trainer: L.Trainer, pl_module: Training) -> dict[str, Any]:
        data, device = trainer.datamodule, pl_module.device
        test = data.rows("test", self.n).to(device)
        train = data.rows("train", self.n).to(device)
        numbers = _distances(pl_module, test, train)
        numbers |= _paths(pl_module, test) if self.paths else {}
        numbers |= coordinates(pl_module, data)
        # ess of a batch depends on its size: take the training's own
        size = getattr(data, "batch_size", None) or self.n
        batch = data.rows("train", size).to(device)
        draw = stream(pl_module.seed, "diagnose", device=device)
        cond = batch.cond
        numbers |= pl_module.loss.diagnose(
            *pl_module.model.encode(*batch.xs), cond=cond, generator=draw
        )
        numbers |= self._tilt(pl_module, train)
        numbers |= _likelihood(pl_module, test)
        numbers |= _field_error(pl_module, data)
        numbers |= _objective(pl_module, test)
        numbers |= heldout_distances(pl_module, data, self.n)
        scoring = sum(c.cpu_seconds for c in trainer.callbacks if isinstance(c, HeldOut))
        averaging = [c.decay for c in trainer.callbacks if hasattr(c, "decay")]
        return numbers | {
            "epsilon": _epsilon(pl_module.loss),
            "train_seconds": round(self._seconds[0], 3),
            "cpu_seconds": round(self._seconds[1] - scoring, 3),
            "steps": pl_module.batches_seen,
            "seed": pl_module.seed,
            "solver": spec(_solver(pl_module.model)),
            "ema": averaging[0] if averaging else None,
            **_parameters(pl_module.model),
            "samples": len(test.xs[-1]),
            "device": str(device),
            "versions": {"genflow": version("genflow"), "python": platform.python_version()}
            | {name: version(name) for name in PACKAGES},
        }

    def _tilt(self, pl_module: Training, train: Batch) -> dict[str, Any]:
        try:
            found = pl_module.tilt_on(train)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            return {"note": f"how the coupling bends the data is not known: {error}"}
        if found is None:
            return {}
        numbers = {k: v for k, v in found.numbers().items() if k != "ess"}
        if numbers["note"] and getattr(pl_module.model, "tilt", None) is not None:
            numbers["note"] += " (with tilt=none: samples start from the tilted source as it is)"
        return numbers


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _parameters(model: Any) -> dict[str, Any]:
    """How many there are; of a process that refines a reference also what its numbers are."""
    number = sum(p.numel() for p in model.parameters())
    process = getattr(model, "process", None)
    if not hasattr(process, "reference"):
        return {"parameters": number}
    history = getattr(process, "history", None)
    found = {"parameters": process.reference.numbers(), "parameter_count": number}
    return found | ({"objective": float(history[-1]["objective"])} if history else {})


def _follows(model: Any) -> bool:
    """Whether samples follow one field from the source to the data, so that its paths have an energy;
    bridges through many snapshots have trajectories of their own."""
    process = getattr(model, "process", None)
    return process is not None and not hasattr(process, "trajectories")


def _distances(training: Training, test: Batch, known: Batch) -> dict[str, Any]:
    model = training.model
    target, train = test.xs[-1].to(model.dtype), known.xs[-1].to(model.dtype)
    distance = Wasserstein()
    numbers: dict[str, Any] = {}
    runs: dict[str, Any] = {"w2": {}}
    if _follows(model):
        runs["w2_euler5"] = {"solver": Euler(5)}
    n = min(len(target), model.most or len(target))
    cond = None if test.cond is None else test.cond[:n]
    for name, options in runs.items():
        draw = stream(training.seed, "report", device=training.device)
        x, nfe = _samples(model, n, cond, draw, **options)
        numbers[name] = float(distance(x, target))
        if name == "w2":
            numbers["nfe"] = nfe
            numbers |= _classes(known, test, x)
    n = min(len(train), len(target))
    numbers["w2_floor"] = float(distance(train[:n], target[:n]))
    return numbers


def _samples(
    model: Any, n: int, cond: Tensor | None, generator: Any, **options: Any
) -> tuple[Tensor, int | None]:
    """Samples, and how many evaluations each took."""
    if not hasattr(model, "process"):
        return model.sample(n, cond=cond, generator=generator), model.nfe
    solution = model.solve(n, cond=cond, generator=generator, **options)
    return solution.x, solution.nfe


def _classes(train: Batch, test: Batch, samples: Tensor) -> dict[str, Any]:
    """How often conditional samples are of the class asked for, where a condition is one label."""
    labels = [batch.cond for batch in (train, test)]
    if any(c is None or c.ndim > 1 or c.is_floating_point() for c in labels):
        return {}
    if len(labels[0].unique()) < 2:
        return {}
    known, held = ((batch.xs[-1], batch.cond) for batch in (train, test))
    found = class_accuracy(known, held, (samples, test.cond[: len(samples)]))
    return {"class_accuracy": found.samples, "class_accuracy_real": found.real}


def _paths(training: Training, test: Batch) -> dict[str, Any]:
    model = training.model
    if not _follows(model) or model.process.chart() is not None:  # energies are those of flat spaces
        return {}
    xs = training.model.encode(*test.xs)
    n = min(len(x) for x in xs)
    cond = None if test.cond is None else test.cond[:n]
    draw = stream(training.seed, "paths", device=training.device)
    start = xs[0][:n]
    if getattr(training.model, "tilt", None) is not None:  # where this model's paths begin
        start = training.model.start(n, cond=cond, generator=draw)
    found = path_report(training.model.process, start, cond, generator=draw)
    pair = float(Wasserstein()(xs[0], xs[-1]))
    noisy = training.model.process.stochastic  # noise moves mass too: W2 bounds no drift's energy
    return {
        "path_energy": found.energy,
        "straightness": found.straightness,
        "w2_pair": pair,
        "bures_pair": float(BuresWasserstein()(xs[0], xs[-1])),
        "path_energy_excess": None if noisy or pair == 0 else energy_excess(found.energy, pair),
    }


@torch.no_grad()
def _objective(training: Training, test: Batch) -> dict[str, float]:
    objective = getattr(training.model.learner, "objective", None)
    if not callable(objective):
        return {}
    return {"test_objective": float(objective(*training.model.encode(*test.xs)))}


def _finite(value: Any) -> Any:
    """``None`` for a number that JSON does not know."""
    if isinstance(value, list):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _solver(model: Any) -> Any:
    """The solver that sampled: another one stands in for noise that the model's cannot take."""
    solver, process = getattr(model, "solver", None), getattr(model, "process", None)
    return solver.for_noise() if solver is not None and process.stochastic else solver


def _likelihood(training: Training, test: Batch) -> dict[str, float]:
    x, cond = test.xs[-1][:LIKELIHOODS], test.cond
    if x[0].numel() > EXACT or not isinstance(training.model, Likelihood):
        return {}
    cond = None if cond is None else cond[:LIKELIHOODS]
    try:
        return {"log_prob": float(training.model.log_prob(x, cond).mean())}
    except NotImplementedError:
        return {}


def _field_error(training: Training, data: Any) -> dict[str, float]:
    found = training.field_error(data.data) if hasattr(data, "data") else None
    if found is None:
        return {}
    numbers = found.numbers()
    return {k if k.startswith("kl_bound") else f"field_{k}": v for k, v in numbers.items()}


def _epsilon(loss: Any) -> float | None:
    return getattr(getattr(loss, "coupling", None), "epsilon", None)
