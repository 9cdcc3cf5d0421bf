"""Fine-tuning of one encoder on one task with one seed, by the trainer of pretraining."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from composer import Callback, DataSpec, Logger, State
from composer.devices import DeviceGPU
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recipe.config import Optimizer, Schedule
from recipe.data.batch import count_sequences, count_tokens
from recipe.errors import UserError
from recipe.finetune.batches import Batch, EncodedExamples, ExampleCollator, outputs_of
from recipe.finetune.kinds.kind import Kind
from recipe.finetune.layers import freeze, slower_below
from recipe.finetune.tasks import Fitting
from recipe.system.hardware import Hardware
from recipe.training.composer_model import AutocastModel
from recipe.training.optimizers import build_optimizer
from recipe.training.rates import Rate
from recipe.training.trainer import OnDevice, Trainer, join_ranks

BETAS, EPS = [0.9, 0.98], 1e-6
REPORT_EVERY_S = 1.0  # to JobsProgress, whose FIRST_S it is; a report waits for the device

# A set that an epoch is judged by, and the score of its outputs (R, C), of which more is better.
Judge = tuple[EncodedExamples, Callable[[np.ndarray], float]]
Report = Callable[[str, float, float | None], None]  # a job's name, the part of it that is done (0..1), its loss


def no_report(name: str, part: float, loss: float | None) -> None:
    """For who does not look."""


@dataclass(frozen=True)
class Fit:
    """What is fitted, and how."""

    name: str  # for messages
    lr: float
    weight_decay: float
    epochs: float
    batch_size: int
    seed: int
    fitting: Fitting = Fitting()
    weights: np.ndarray | None = None  # (C,) float32, of the classes in the loss
    lr_key: str = "lr_scale"  # what its user lowers when the loss diverges


@dataclass(frozen=True)
class Outcome:
    outputs: dict[str, np.ndarray]  # (R, C) float32 of each set that was predicted, in the order of its labels
    seconds: float  # of training and prediction
    tokens: int  # real ones, trained on
    sequences: int
    batches: int


class FineTuning(AutocastModel):
    """A model and what its kind minimises, as the trainer wants them."""

    def __init__(self, model: nn.Module, kind: Kind, hardware: Hardware, fit: Fit) -> None:
        super().__init__(model, hardware.device, hardware.autocast)
        self._kind, weights_C = kind, fit.weights
        self._settings = {name: getattr(fit.fitting, name) for name in kind.loss_settings}
        self._weights = () if weights_C is None else (torch.from_numpy(weights_C).to(hardware.device),)

    def forward(self, batch: Batch) -> Tensor:
        """(R, C) float32."""
        with self.autocast():
            return self.model(batch).float()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._kind.loss(outputs, batch["labels"], *self._weights, **self._settings)


class Count(Callback):
    """What was trained on, and how far it is, now and then."""

    def __init__(self, name: str, batches: int, report: Report) -> None:
        self.name = name
        self.batches = batches
        self.report = report
        self.tokens = self.sequences = self.done = 0
        self.said = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.tokens += weight(state.batch)["total"]
        self.sequences += sequences(state.batch)
        self.done += 1
        now = time.perf_counter()
        if now - self.said > REPORT_EVERY_S:
            self.said = now
            loss = float(state.loss.detach()) if isinstance(state.loss, Tensor) else None
            self.report(self.name, self.done / self.batches, loss)


class BestEpoch(Callback):
    """Judges the model after each epoch, ends training when it has not got better for a while, and knows the best weights."""

    def __init__(
        self,
        model: FineTuning,
        judge: Judge,
        collator: ExampleCollator,
        device: str,
        per_epoch: int,
        batches: int,
        patience: int,
    ) -> None:
        self._model, self._collator, self._device, self._patience = model, collator, device, patience
        self._examples, self._score = judge
        self._per_epoch, self._batches = per_epoch, batches
        self._best, self._since = -math.inf, 0
        self._weights: dict[str, Tensor] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        done = state.timestamp.batch.value
        if done % self._per_epoch and done != self._batches:
            return
        self._model.eval()
        score = self._score(outputs_of(self._model, self._examples, self._collator, self._device))
        self._model.train()
        self._since += 1
        if score > self._best:
            self._best, self._since = score, 0
            self._weights = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        if self._since >= self._patience:
            state.stop_training()

    def restore(self) -> None:
        """Bring the best weights back."""
        if self._weights:  # none where no score was a number
            self._model.load_state_dict(self._weights)


def fine_tune(
    model: nn.Module,
    kind: Kind,
    fit: Fit,
    train: EncodedExamples,
    predicted: dict[str, EncodedExamples],
    collator: ExampleCollator,
    hardware: Hardware,
    report: Report = no_report,
    judge: Judge | None = None,
) -> Outcome:
    """Fit `model` in place and predict other sets, once, at the end.

    AdamW as in pretraining, 6 % warm-up, then linear to 0, unless `fit.fitting` has other numbers; shuffled anew each epoch, in
    an order that the seed decides; the last, shorter batch is used. A batch has `fit.batch_size` examples whatever their lengths;
    `collator.max_tokens` bounds only what runs at a time, and the gradient is the whole batch's. With `judge` the model is that
    of the best epoch.

    Raises:
        UserError: the loss ran away, so that the predictions are no numbers; or the GPU's memory was not enough.
    """
    order = torch.Generator().manual_seed(fit.seed)
    pieces = partial(collator.microbatches, train)
    loader = DataLoader(range(len(train)), fit.batch_size, shuffle=True, generator=order, collate_fn=pieces)
    batches = max(1, math.ceil(fit.epochs * len(loader)))
    tuned, count = FineTuning(model, kind, hardware, fit), Count(fit.name, batches, report)
    best = judge and BestEpoch(tuned, judge, collator, hardware.device, len(loader), batches, fit.fitting.patience)
    trainer = _trainer(tuned, fit, loader, batches, [count, best] if best else [count], hardware)
    started = time.perf_counter()
    try:
        trainer.fit()
        if best:
            best.restore()
        tuned.eval()
        outputs = {name: outputs_of(tuned, examples, collator, hardware.device) for name, examples in predicted.items()}
    except torch.OutOfMemoryError:
        raise UserError(f"{fit.name}: out of memory with max_tokens={collator.max_tokens}; set a smaller one") from None
    finally:
        trainer.close()
    seconds = time.perf_counter() - started
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise UserError(f"{fit.name}: the loss ran away (lr {fit.lr:g}); set a smaller {fit.lr_key}")
    return Outcome(outputs, seconds, count.tokens, count.sequences, count.done)


def _trainer(
    tuned: FineTuning, fit: Fit, loader: DataLoader, batches: int, callbacks: list[Callback], hardware: Hardware
) -> Trainer:
    fitting, model = fit.fitting, tuned.model
    freeze(model, fitting.freeze_layers)
    settings = Optimizer(lr=fit.lr, betas=BETAS, eps=EPS, weight_decay=fit.weight_decay)
    optimizer = build_optimizer(model, settings, hardware.activation_dtype)
    # The process' own GPU: jobs that run side by side have one each.
    device = DeviceGPU(torch.cuda.current_device()) if hardware.kind == "gpu" else "cpu"
    join_ranks(device)
    return Trainer(
        count_tokens=weight,
        model=tuned,
        optimizers=slower_below(optimizer, model, fitting.layer_decay),
        schedulers=Rate(Schedule(warmup=fitting.warmup, final_lr=fitting.final_lr)),
        train_dataloader=DataSpec(
            loader,
            split_batch=lambda pieces, _: pieces,
            get_num_samples_in_batch=sequences,
            get_num_tokens_in_batch=weight,
        ),
        accumulate_train_batch_on_tokens=True,
        max_duration=f"{batches}ba",
        device=device,
        precision="fp32",  # Composer's own; the model brings its autocast, on a CPU too
        seed=fit.seed,
        callbacks=callbacks,
        progress_bar=False,
    )


def weight(pieces: Batch | list[Batch]) -> dict[str, float]:
    """Real tokens, and what the losses of pieces are weighed by: their labels, over which a piece's loss is the mean."""
    if isinstance(pieces, OnDevice):
        return pieces.tokens
    if isinstance(pieces, list):  # a batch, of which Composer asks for the whole and for each piece
        totals = [count_tokens(piece) for piece in pieces]
        return {key: sum(total[key] for total in totals) for key in totals[0]}
    return count_tokens(pieces)


def sequences(pieces: Batch | list[Batch]) -> int:
    return sum(map(count_sequences, pieces)) if isinstance(pieces, list) else count_sequences(pieces)
