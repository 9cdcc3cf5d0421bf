"""Composer's trainer, without what makes the device wait for the host or the host for the device in every batch.

Composer reads the loss, the number of tokens and the loader's end from the device several times a batch, so that a GPU stands
still until Python has prepared its next kernels. Here those numbers never were on the device: they are counted on the host and
added up over the ranks by gloo, and the loss stays where it is until the meter reads it. The rest of the loop is Composer's own.
Its private methods are overridden, of the version in the lock; `tests/training/test_trainer.py` holds what they must do.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import composer
import torch
from composer import Event
from composer.core import Batch
from composer.devices import Device
from composer.trainer.trainer import TrainerMode
from composer.utils import dist
from torch import Tensor
from torch.distributed import distributed_c10d

from recipe.system.quiet import quiet_stdout
from recipe.training import pulse
from recipe.training.checkpoint_files import composer_reads_safely
from recipe.training.stopping import Stopping


class OnDevice(dict):
    """A microbatch on the device, with the tokens in it as they were counted on the host.

    Composer's `deepcopy` of every microbatch, made for training metrics that we do not have, leaves it alone.
    """

    def __init__(self, batch: Batch, tokens: dict[str, float] | None = None) -> None:
        super().__init__(batch)
        self.tokens = tokens  # None in the copy of the items that torch may make for a wrapped model

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        return self


def join_ranks(device: str | Device) -> None:
    """Make the process group of all ranks, if there is none yet, on `device`: Composer's, or cpu or gpu."""
    if "GROUP_RANK" in os.environ:  # torchrun's name for what Composer asks for; an elastic launch changes it
        os.environ["NODE_RANK"] = os.environ["GROUP_RANK"]
    with quiet_stdout():
        dist.initialize_dist(device)


class Trainer(composer.Trainer):
    def __init__(
        self, *, count_tokens: Callable[[Batch], dict[str, float]], stopping: Stopping | None = None, **arguments: Any
    ) -> None:
        """`count_tokens` is the training data's, and gets what `OnDevice.tokens` then says. The rest is Composer's; `stopping` is
        one of the callbacks, absent in runs that are begun again instead of continued."""
        self._count_tokens, self._stopping = count_tokens, stopping or Stopping()
        self._host = None  # the ranks' group for numbers on the host; None: the default one
        if dist.get_world_size() > 1 and torch.distributed.get_backend() != "gloo":
            with quiet_stdout():
                self._host = torch.distributed.new_group(backend="gloo")
        with composer_reads_safely():  # of a run that is continued
            super().__init__(**arguments)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; after an error without Composer's wait for all ranks, which may not come or wait for this one elsewhere."""
        if kind:
            self.engine.close()
        else:
            self.close()

    def fit(self, **given: Any) -> None:
        """As Composer's, to which it is an error that nothing is left to train: so it is in a run that was killed behind its last
        checkpoint, and whose encoder is still to be written."""
        if given or float(self.state.get_elapsed_duration() or 0) < 1:
            super().fit(**given)
        else:
            self.engine.run_event(Event.FIT_START)
            self.engine.run_event(Event.FIT_END)

    def wait_at_most(self, seconds: float) -> None:
        """Of ranks for each other. What runs on GPUs may take a minute longer: its watchdog ends the process without a line."""
        if dist.get_world_size() > 1:
            if self._host:
                distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), self._host)
            distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds + (60 if self._host else 0)))

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Iterator[Batch]:
        """Batches until the first rank has none left, or until as many as an epoch is to have."""
        training, length = trainer_mode == TrainerMode.TRAIN, self.state.dataloader_len
        batches = itertools.islice(self.state.dataloader, None if length is None else int(length))
        while True:
            if training:
                self.engine.run_event(Event.BEFORE_DATALOADER)
            batch = next(batches, None)
            if self._sum_of_ranks([batch is None])[0]:
                break
            yield batch
        if training:
            self.engine.run_marker_only_event(Event.AFTER_DATALOADER)

    def _accumulate_time_across_ranks(
        self, num_samples: float, num_tokens: int, batch_time: datetime.timedelta
    ) -> tuple[int, int, datetime.timedelta]:
        samples, tokens, asked = self._sum_of_ranks([num_samples, num_tokens, self._stopping.asked])
        self._stopping.agreed = asked > 0
        return round(samples), round(tokens), batch_time

    def _sum_of_ranks(self, numbers: Sequence[float]) -> list[float]:
        if dist.get_world_size() == 1:
            return [float(number) for number in numbers]
        pulse.met()
        tensor = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(tensor, group=self._host)
        return tensor.tolist()

    def _use_closures(self) -> bool:
        return False  # a closure's loss is read before the optimizer's kernels are queued

    def _train_batch(self, use_grad_scaling: bool) -> None:
        """As Composer's, but the loss is not read: None is what Composer itself returns where there is none to log."""
        super()._train_batch(use_grad_scaling)

    def _train_microbatches(
        self, microbatches: Sequence[Batch], total_loss_dict: dict[str, Tensor], ddp_sync: bool = True
    ) -> Tensor:
        """Gradients of a batch, its microbatches weighed by their share of what all ranks predict."""
        self.engine.run_event(Event.BEFORE_TRAIN_BATCH)
        for optimizer in self.state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        batch, counts = self.state.batch, [self._count_tokens(piece) for piece in microbatches]
        here = sum(tokens["loss_generating"] for tokens in counts)
        predicted = self._sum_of_ranks([here])[0] / dist.get_world_size()
        for number, (piece, tokens) in enumerate(zip(microbatches, counts, strict=True), start=1):
            self.state.batch = OnDevice(self._moved(piece), tokens)
            self._train_microbatch(False, predicted, number == len(microbatches))
        self.state.batch = batch
        self.engine.run_event(Event.AFTER_TRAIN_BATCH)
        return total_loss_dict["loss/train/total"]

    def _moved(self, piece: Batch) -> Batch:
        """Queued behind what the device has to do, so that it costs no wait; from memory that is not pinned it might."""
        if self.state.device.name == "gpu":
            loose = {
                name: value for name, value in piece.items() if isinstance(value, Tensor) and not value.is_pinned()
            }
            piece = piece | {name: value.pin_memory() for name, value in loose.items()}
        return self.state.device.batch_to_device(piece)
