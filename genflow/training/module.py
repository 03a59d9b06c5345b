"""The one LightningModule: any model, any loss, any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from genflow.coupling import Gibbs
from genflow.data import Batch
from genflow.diagnostics import TiltReport
from genflow.distance import Distance
from genflow.distance.base import measure
from genflow.loss import ImplicitScoreMatching, Loss, Projection
from genflow.model import Model
from genflow.oracle import FieldError, oracle_of
from genflow.seeds import stream, stream_seed
from genflow.source import Source
from genflow.specs import fill, spec
from genflow.tensors import check_marginals
from genflow.version import __version__


def as_batch(batch: Any) -> Batch:
    """A :class:`Batch` from what a loader yields: itself, or a plain sequence ``(x0, ..., xK)``.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, (tuple, list)) and all(isinstance(x, Tensor) for x in batch):
        return Batch(tuple(batch))
    raise TypeError(
        "a loader must yield genflow.data.Batch or a tuple of tensors (x0, x1), got "
        f"{type(batch).__name__}"
    )


def _network(model: Model) -> torch.nn.Module:
    """The network inside a model's learner."""
    learner = model.learner
    for name in ("network", "fields", "field"):
        if isinstance(getattr(learner, name, None), torch.nn.Module):
            return getattr(learner, name)
    raise ValueError(
        f"Training(compile=True): {type(learner).__name__} has no network to compile; use compile=false"
    )


class Training(L.LightningModule):
    """Fits the learner of a model with a loss.

    Every draw of step ``k`` comes from a stream named by ``(seed, k)``, so that a run that is
    killed and resumed sees the same numbers as an unbroken one.

    Args:
        model: what is trained; checkpoints describe it, and ``genflow.load`` reads them.
        loss: called as ``loss(model.learner, *xs, cond=..., generator=...)`` with marginals in the
            model's space.
        optimizer: makes an optimizer from parameters, such as ``partial(Adam, lr=1e-3)``; ``None``
            for losses that advance their learner themselves.
        scheduler: makes a learning-rate schedule from the optimizer, stepped every step.
        metrics: distances between samples and data, computed at validation.
        metric_size: samples they are computed on.
        seed: of every stream of draws.
        compile: run the network through ``torch.compile``, in place, so that checkpoints keep their
            keys; the first steps then take a minute. After training it is as it was.

    Raises:
        ValueError: for ``compile`` with a learner that has no network, or a loss that takes its
            derivatives.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        metrics: Mapping[str, Distance] | None = None,
        metric_size: int = 1000,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.metrics, self.metric_size, self.seed = dict(metrics or {}), metric_size, seed
        self.batches_seen, self.started, self.last_loss = 0, False, math.nan
        self.mean_loss = MeanMetric()
        self.automatic_optimization = optimizer is not None
        self.compiled = compile
        if compile:
            if isinstance(loss, ImplicitScoreMatching):
                raise ValueError(
                    "Training(compile=True): ImplicitScoreMatching differentiates the network twice, "
                    "which compiled code refuses; use compile=false"
                )
            _network(model).compile()
        self._loss_before = spec(loss)
        self._draw: torch.Generator | None = None
        self._tilt: tuple[Any, TiltReport | None] | None = None
        self._random_state: dict[str, Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook on its module forty times a step; nn.Module would search
        # parameters, buffers and submodules for each
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def prepare(self, *xs: Tensor, cond: Tensor | None = None) -> Training:
        """Let model and loss choose from data what was left open. :class:`DataModule` calls this."""
        check_marginals("Training", *xs)
        self.model.prepare(*xs, cond=cond)
        self.loss.prepare(*self.model.encode(*xs), cond=cond)
        self._follow()
        return self

    def _follow(self) -> None:
        """A start from the tilted source is that of the very weights of the loss."""
        tilt, coupling = getattr(self.model, "tilt", None), getattr(self.loss, "coupling", None)
        if tilt is not None and isinstance(coupling, Gibbs):
            tilt.coupling = coupling

    def tilt_on(self, batch: Batch) -> TiltReport | None:
        """How the loss's coupling bends the laws of the batch, in the model's space; the last answer is
        kept for whoever asks again."""
        key = (self.batches_seen, len(batch.xs[-1]))
        if self._tilt is None or self._tilt[0] != key:
            draw = stream(self.seed, "tilt", device=self.device)
            xs = self.model.encode(*batch.xs)
            self._tilt = (key, self.loss.tilt(*xs, cond=batch.cond, generator=draw))
        return self._tilt[1]

    def field_error(self, data: Any) -> FieldError | None:
        """The true error of the learner's fields where the laws of ``data`` (a ``Data``) are known.

        Not that of a light bridge: it aims at the Schrödinger bridge, whatever the pairs that train it.
        """
        if hasattr(self.model.learner, "objective"):
            return None
        laws = data.marginals("test")
        known = len(laws) == 2 and all(isinstance(law, Source) for law in laws)
        oracle = oracle_of(self.model, self.loss, *laws) if known else None
        if oracle is None:
            return None
        return oracle.field_error(self.model, generator=stream(self.seed, "oracle"))

    def rehearse(self, batch: Batch) -> None:
        """One loss and one sample, so that parts that do not fit are told before training.

        It leaves no trace: the model is in eval mode, and a loss that fits its own learner is not
        called, since one call of it is an iteration.
        """
        self._check_optimizer()
        self.loss.check(self.model.learner)
        if not self.automatic_optimization:
            spec(self.model)
            return
        follows = hasattr(self.model, "process")
        if not follows and hasattr(self.loss, "coupling"):
            raise ValueError(
                f"{type(self.loss).__name__} learns a field, and a {type(self.model).__name__} follows "
                "none; use loss=sample_distance, or model=generator"
            )
        spec(self.model)  # told now, not when the first checkpoint is due
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self._loss(batch, stream(self.seed, "rehearsal", device=self.model.device))
            few = None if batch.cond is None else batch.cond[:1]
            self.model.sample(1, cond=few, **({"steps": 1} if follows else {}))
        self.model.train(training)

    def _check_optimizer(self) -> None:
        if self.optimizer is not None and isinstance(self.loss, Projection):
            raise ValueError(f"{type(self.loss).__name__} moves its learner itself: use optimizer=none")

    def _loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        xs, cond = as_batch(batch)
        return self.loss(self.model.learner, *self.model.encode(*xs), cond=cond, generator=generator)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        step = self.batches_seen
        if self._draw is None or self._draw.device != self.device:
            self._draw = torch.Generator(device=self.device)
        self._draw.manual_seed(stream_seed(self.seed, "loss", step, self.global_rank))
        try:
            loss = self._loss(batch, self._draw)
        except FloatingPointError as error:  # a part that looks at its numbers itself
            raise FloatingPointError(self._diverged(str(error))) from None
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(self._diverged(f"the loss is {value}"))
        self.batches_seen, self.last_loss, self.started = step + 1, value, True
        if step % self.trainer.log_every_n_steps == 0:
            name = "train/loss" if self.automatic_optimization else "objective"
            self.log(name, value, prog_bar=True)
        if not self.automatic_optimization:
            self._stop_manual_run()
            return None
        return loss

    def _diverged(self, what: str) -> str:
        if not self.automatic_optimization:
            return (
                f"{what} at step {self.batches_seen}: check the data, sigma and where the parameters "
                "start; checkpoints written so far are untouched"
            )
        return (
            f"{what} at step {self.global_step} (batch {self.batches_seen}): check the data, lower the "
            "learning rate or clip gradients (trainer.gradient_clip_val); checkpoints written so far "
            "are untouched"
        )

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:  # without the profiling around torch's own
            for parameter in group["params"]:
                parameter.grad = None

    def _stop_manual_run(self) -> None:
        """Lightning counts optimizer steps, which a loss that fits its own learner never makes."""
        if 0 < self.trainer.max_steps <= self.batches_seen:
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _evaluate(self, batch: Any, batch_idx: int) -> None:
        if not self.automatic_optimization:  # calling such a loss would be a training iteration
            return
        draw = stream(self.seed, "val", batch_idx, self.global_rank, device=self.device)
        self.mean_loss.update(self._loss(batch, draw))

    def _log_evaluation(self, split: str) -> None:
        if self.mean_loss.update_called:
            self.log(f"{split}/loss", self.mean_loss.compute())
            self.mean_loss.reset()
        data = getattr(self.trainer, "datamodule", None)
        if self.metrics and hasattr(data, "rows"):
            batch = data.rows(split, self.metric_size).to(self.device)
            target, cond = batch.xs[-1].to(self.model.dtype), batch.cond
            draw = stream(self.seed, "metrics", device=self.device)
            # a finite table may be shorter than metric_size, a model of points have fewer
            n = min(len(target), self.model.most or len(target))
            samples = self.model.sample(n, cond=None if cond is None else cond[:n], generator=draw)
            for name, distance in self.metrics.items():
                value = float(measure(distance, samples, target, draw))
                self.log(f"{split}/{name}", value, sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            return None
        self._check_optimizer()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                "the model has no parameters to optimise: set optimizer=null for a loss that fits "
                "its learner itself"
            )
        optimizer = self.optimizer(parameters)
        fused = any(group.get("fused") for group in optimizer.param_groups)
        if fused and self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision):
            raise ValueError(
                "a fused optimizer cannot clip gradients under mixed precision: set "
                "optimizer.fused=false"
            )
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = spec(self.model)
        checkpoint["genflow"] = __version__
        checkpoint["loss"] = spec(self.loss)
        checkpoint["batches_seen"] = self.batches_seen
        # for dropout and whatever else a network draws; our own draws are named streams
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["random_state"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint.get("batches_seen", 0)
        self._random_state = checkpoint.get("random_state")
        if "loss" in checkpoint:
            fill(self.loss, self._loss_before, checkpoint["loss"])
            self._follow()

    def on_train_end(self) -> None:
        if self.compiled:  # a divergence goes through one graph many times, which compiled code refuses
            _network(self.model)._compiled_call_impl = None

    def on_train_start(self) -> None:
        self.started = self.batches_seen > 0  # the first batch still tells what does not fit
        if not self.automatic_optimization:
            self._stop_manual_run()
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if "cuda" in self._random_state and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._random_state["cuda"].cpu(), self.device)
            self._random_state = None
