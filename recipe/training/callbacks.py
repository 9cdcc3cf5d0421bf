"""The meter of a run: tokens, seconds, dollars, loss. It is saved in checkpoints, so a resumed run's bill is whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist, reproducibility

from recipe.cost.prices import Price, bill
from recipe.data import network
from recipe.data.batch import count_tokens
from recipe.system.hardware import Hardware
from recipe.system.progress import clock, time_left
from recipe.training import ceilings
from recipe.training.rates import elapsed

LOADER_LIMIT = 0.1  # share of the time spent waiting for data above which the loader is what limits a run


@dataclass
class Sums:
    """Over all ranks."""

    sequences: int = 0
    tokens: int = 0
    squared_lengths: float = 0.0
    masked: int = 0
    measured: dict[str, float] = field(default_factory=dict)  # the objective's metrics, each times masked tokens
    batches: int = 0
    seconds: float = 0.0  # of training, writing checkpoints included, evaluation not
    device_seconds: float = 0.0  # these, each on as many devices as there were: a run may go on with fewer or more
    waiting: float = 0.0  # seconds of these in which the device was idle until its next batch came; a rank's mean
    network_seconds: float = 0.0  # of fetching from an object store, beside training or not, evaluation's too
    network_retries: int = 0
    network_bytes: int = 0

    @property
    def devices(self) -> float:
        """How many there were, the mean over time."""
        return self.device_seconds / self.seconds if self.seconds else 0.0

    def add(self, other: Sums) -> None:
        for name in (one.name for one in dataclasses.fields(self) if one.name != "measured"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, value in other.measured.items():
            self.measured[name] = self.measured.get(name, 0.0) + value

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Sums:
        """From a checkpoint; those of version 0.1 and before hold the metrics side by side with the rest."""
        known = {one.name for one in dataclasses.fields(cls)}
        metrics = {name: value for name, value in saved.items() if name not in known}
        return cls(**{"measured": metrics, **{name: value for name, value in saved.items() if name in known}})


@dataclass
class Progress:
    """What a run has done, from its first start on."""

    total: Sums = field(default_factory=Sums)
    loss_curve: list[dict[str, Any]] = field(default_factory=list)
    eval_curve: list[dict[str, Any]] = field(default_factory=list)


class Meter(Callback):
    """Counts while training, prints a line every `log_every` batches, and hands each line to `on_line`. For `Trainer` of this
    project, whose microbatches know what is in them.

    Between two lines nothing is read from the device.
    """

    def __init__(
        self,
        hardware: Hardware,
        price: Price,
        flops_of: Callable[[Sums], float],
        log_every: int,
        on_line: Callable[[Progress], None],
        metrics: Sequence[str] = ("loss",),
    ) -> None:
        """`flops_of` gives the operations that training on the counted tokens needs; `metrics` are the names of the objective's
        outputs."""
        self.hardware = hardware
        self.peak_flops = hardware.peak_flops  # what MFU is a share of; raised by a run that is faster
        self.price = price
        self.flops_of = flops_of
        self.log_every = log_every
        self.on_line = on_line
        self.metrics = tuple(metrics)
        self.progress = Progress()
        self._line = Sums()  # since the last line
        self._counted = torch.zeros(4, dtype=torch.float64)  # on this rank, not yet in `_line`: the first four of Sums
        self._measured: torch.Tensor | None = None  # the same for the metrics, on the device
        self._batches = 0
        self._lr = 0.0  # of the last step
        self._clock = 0.0  # when it was last read
        self._asked = (0.0, False)  # when the loader was asked for a batch, and whether the device was idle already
        self._waiting = 0.0  # on this rank, not yet in `_line`
        self._evaluated = 0  # masked tokens that this rank has seen in an evaluation
        self._retries_said = False

    def fit_start(self, state: State, logger: Logger) -> None:
        self._clock = time.perf_counter()

    def eval_start(self, state: State, logger: Logger) -> None:
        self._gather()
        self._evaluated = 0

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        self._evaluated += count_tokens(state.batch)["loss_generating"]

    def eval_end(self, state: State, logger: Logger) -> None:
        everything = torch.cat([torch.tensor([self._evaluated], dtype=torch.float64), _network()]).to(
            self.hardware.device
        )
        dist.all_reduce(everything)
        masked, *spent = everything.tolist()
        values = {
            name: float(metric.compute()) if masked else None for name, metric in state.eval_metrics["eval"].items()
        }
        total = self.progress.total
        total.add(_of_network(*spent))
        self.progress.eval_curve.append({"batch": total.batches, "tokens": total.tokens, **values})
        say(f"batch {total.batches:>6} evaluation: {loss_words(values, self.metrics)}")
        self._clock = time.perf_counter()

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._asked = (time.perf_counter(), self._device_is_idle())

    def after_dataloader(self, state: State, logger: Logger) -> None:
        asked, was_idle = self._asked
        if was_idle or self._device_is_idle():
            self._waiting += time.perf_counter() - asked

    def _device_is_idle(self) -> bool:
        """Whether it has nothing left to do, and so waits with the host. Asked, not waited for."""
        return self.hardware.kind != "gpu" or torch.cuda.current_stream().query()

    def after_loss(self, state: State, logger: Logger) -> None:
        outputs, masked = state.outputs, state.batch.tokens["loss_generating"]
        measured = torch.stack([outputs[name].detach() for name in self.metrics]) * masked
        self._measured = measured if self._measured is None else self._measured + measured
        self._lr = state.optimizers[0].param_groups[0]["lr"]  # at the batch's end it is the next one's already

    def batch_end(self, state: State, logger: Logger) -> None:
        self._counted += torch.from_numpy(state.batch["counts"].sum(axis=0))
        self._batches += 1
        if self._line.batches + self._batches >= self.log_every:
            self._write_line(state, logger)

    def fit_end(self, state: State, logger: Logger) -> None:
        if self._line.batches + self._batches:
            self._write_line(state, logger)

    def state_dict(self) -> dict[str, Any]:
        """Called on every rank when a checkpoint is written."""
        self._gather()
        return {"progress": dataclasses.asdict(self.progress), "line": dataclasses.asdict(self._line), "lr": self._lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        progress = state["progress"]
        self.progress = Progress(
            self._read(progress["total"]), list(progress["loss_curve"]), list(progress["eval_curve"])
        )
        self._line = self._read(state["line"])
        self._lr = state.get("lr", 0.0)  # earlier checkpoints have none

    def _read(self, saved: Mapping[str, Any]) -> Sums:
        """Earlier checkpoints do not have the devices' seconds: they are taken for today's devices'."""
        return Sums.read({"device_seconds": saved["seconds"] * self.hardware.count, **saved})

    def leave_out(self, seconds: float) -> None:
        """Time that has just passed and is not training's."""
        self._clock += seconds

    def _gather(self) -> None:
        """Bring what this and the other ranks counted into `_line` and the total, and the clock with it."""
        if self.hardware.kind == "gpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        device = self.hardware.device
        measured = torch.zeros(len(self.metrics), device=device) if self._measured is None else self._measured
        waiting = torch.tensor([self._waiting / dist.get_world_size()], dtype=torch.float64)
        everything = torch.cat([torch.cat([self._counted, waiting, _network()]).to(device), measured.double()])
        dist.all_reduce(everything)
        sequences, tokens, squared, masked, waited, seconds, retries, size, *sums = everything.tolist()
        named = dict(zip(self.metrics, sums, strict=True))
        times = {"seconds": passed, "device_seconds": passed * self.hardware.count, "waiting": waited}
        gathered = Sums(int(sequences), int(tokens), squared, int(masked), named, self._batches, **times)
        gathered.add(_of_network(seconds, retries, size))
        self._line.add(gathered)
        self.progress.total.add(gathered)
        self._counted.zero_()
        self._measured, self._batches, self._waiting = None, 0, 0.0

    def _write_line(self, state: State, logger: Logger) -> None:
        self._gather()
        line, total = self._line, self.progress.total
        self._line = Sums()
        row = {
            "batch": total.batches,
            "tokens": total.tokens,
            "seconds": total.seconds,
            "lr": self._lr,
            **{name: line.measured[name] / line.masked if line.masked else None for name in self.metrics},
            "tokens_per_s": line.tokens / line.seconds,
            "mfu": self._mfu(line),
            "waiting": line.waiting / line.seconds,
        }
        self.progress.loss_curve.append(row)
        done = elapsed(state)
        usd = bill(total.seconds, total.devices, self.price, self.hardware.kind)["usd"]
        logged = {**row, "usd": usd}
        logger.log_metrics({f"train/{name}": value for name, value in logged.items() if value is not None})
        eta = clock(time_left(total.seconds, done))
        mfu = "" if row["mfu"] is None else f"  MFU {row['mfu']:.0%}"
        waiting = f"  waiting for data {row['waiting']:.0%}" if row["waiting"] >= LOADER_LIMIT else ""
        say(
            f"batch {row['batch']:>6} ({done:4.0%})  {loss_words(row, self.metrics)}"
            f"  lr {row['lr']:.1e}  {row['tokens_per_s']:,.0f} tokens/s{mfu}{waiting}  ${usd:,.4f}  ETA {eta}"
        )
        if total.network_retries and not self._retries_said:
            self._retries_said = True
            say(
                f"  the object store was asked again (requests so far: {total.network_retries:,}), which is only counted now"
            )
        self.on_line(self.progress)

    def _mfu(self, line: Sums) -> float | None:
        """Of the ceiling, which a line that is faster replaces; None where none is known."""
        if not self.peak_flops:
            return None
        reached = self.flops_of(line) / line.seconds
        if reached > self.peak_flops:
            self.peak_flops = reached
            if self.hardware.kind == "cpu" and dist.get_global_rank() == 0:
                ceilings.keep("cpu", self.hardware.activation_dtype, reached / dist.get_world_size())
        return reached / self.peak_flops


def _network() -> torch.Tensor:
    """(3,) seconds, retries and bytes of this rank since the last time."""
    spent = network.take()
    return torch.tensor([spent.seconds, spent.retries, spent.bytes], dtype=torch.float64)


def _of_network(seconds: float, retries: float, size: float) -> Sums:
    return Sums(network_seconds=seconds, network_retries=int(retries), network_bytes=int(size))


class AfterBatch(Callback):
    """Calls `action` with the trainer's state after every batch, for who watches a run from outside."""

    def __init__(self, action: Callable[[State], object]) -> None:
        self.action = action

    def batch_end(self, state: State, logger: Logger) -> None:
        self.action(state)


class RandomStateOnResume(Callback):
    """Restores a checkpoint's random state before the first batch, which Composer does only at the start of an epoch.

    The streaming dataset needs no draws to find its place again; dropout does.
    """

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] | None = None  # of every rank, as Composer keeps it

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.saved is not None:
            reproducibility.load_rng_state(self.saved)
            self.saved = None


def loss_words(values: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """An objective's metrics for a line; they are None where there was nothing to predict."""
    if values["loss"] is None:
        return "no loss (no token was masked)"
    return "  ".join(f"{name.removeprefix('masked_')} {values[name]:.3f}" for name in metrics)


def limit_of(total: Sums) -> dict[str, Any]:
    """Whether the loader or the model limited a run, for its record."""
    share = total.waiting / total.seconds if total.seconds else 0.0
    return {"limit": "loader" if share >= LOADER_LIMIT else "model", "waiting": share}


def say(text: str) -> None:
    """Print from the first rank alone."""
    if dist.get_global_rank() == 0:
        print(text, flush=True)
