"""The learning rate over a run, as Composer's trainer really sets it, in every unit of duration."""

from __future__ import annotations

import pytest
import torch
from composer import Callback, Trainer
from composer.models import ComposerModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recipe import train
from recipe.config import Schedule, TrainConfig, load
from recipe.data.batch import count_sequences
from recipe.training.preflight import make_plan
from recipe.training.rates import Rate
from recipe.training.schedules import fallen, linear_with_warmup, warmup_stable_decay
from tests.tiny.configs import train_yaml

BATCHES, BATCH_SIZE, LR = 20, 2, 0.5


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.0), (0.03, 0.5), (0.06, 1.0), (0.53, 0.51), (1.0, 0.02), (1.2, 0.02)]
)
def test_the_papers_schedule(progress, factor):
    assert linear_with_warmup(progress, warmup=0.06, final=0.02) == pytest.approx(factor)


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("final", [0.0, 0.02, 1.0])
def test_shape(warmup, final):
    """Up, then down; never beyond its bounds; the peak stands where the warm-up ends."""
    steps = [i / 1_000 for i in range(1_001)]
    factors = [linear_with_warmup(step, warmup, final) for step in steps]
    assert all(0 <= factor <= 1 for factor in factors)
    rising = [b >= a for a, b in zip(factors, factors[1:], strict=False)]
    end = round(1_000 * warmup)
    assert all(rising[: max(end - 1, 0)])
    assert all(a >= b for a, b in zip(factors[end:], factors[end + 1 :], strict=False))
    if warmup < 1:
        assert factors[end] == pytest.approx(1.0)
        assert factors[-1] == pytest.approx(final)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0.0, 0.0),
        (0.05, 0.5),
        (0.1, 1.0),
        (0.6, 1.0),
        (0.7, 0.51),
        (0.9, 1 - 0.98 * 0.75**0.5),
        (1.0, 0.02),
        (1.1, 0.02),
    ],
)
def test_warm_up_stable_decay(progress, factor):
    assert warmup_stable_decay(progress, warmup=0.1, decay=0.4, final=0.02) == pytest.approx(factor)
    assert warmup_stable_decay(progress, warmup=0.1, decay=0.0, final=0.02) == pytest.approx(min(progress / 0.1, 1))


def test_how_much_of_its_fall_is_behind():
    linear, wsd = Schedule(warmup=0.2, final_lr=0.1), Schedule(shape="wsd", warmup=0.2, final_lr=0.1, decay=0.4)
    assert [fallen(at, linear) for at in (0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0, 0, 0.5, 1])
    assert [fallen(at, wsd) for at in (0, 0.1, 0.6, 0.7, 1.0)] == pytest.approx([0, 0, 0, 0.5, 1])


def test_the_masking_rate_falls_in_wsd_s_decay_alone(tmp_path, tiny_dataset):
    """In every epoch's batches, whose place in the run is that of their documents."""
    words = ("data.mask_rate=0.6", "data.mask_rate_end=0.1", "data.mask_rate_falls=with_lr", "schedule.shape=wsd")
    yaml = train_yaml(
        tmp_path, tiny_dataset, *words, "schedule.decay=0.5", "duration=1ep", "batch_size=128", "device=cpu"
    )
    loader = train.data_spec(make_plan(load(TrainConfig, str(yaml))), train=True, batch_size=128).dataloader
    shares = [len(b["labels"]) / (len(b["input_ids"]) - 2 * count_sequences(b)) for b in loader]
    documents = len(loader.dataset.documents)
    settings = Schedule(shape="wsd", decay=0.5)
    expected = [0.6 - 0.5 * fallen(128 * i / documents, settings) for i in range(len(shares))]
    assert shares == pytest.approx(expected, abs=0.03) and shares[len(shares) // 2 - 1] > 0.57 > 0.2 > shares[-1]


class SquaredError(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, batch):
        return self.linear(batch[0])

    def loss(self, outputs, batch):
        return (outputs - 1).square().mean()


class Rates(Callback):
    """The rate that each step was taken with."""

    def __init__(self) -> None:
        self.seen = []

    def batch_start(self, state, logger) -> None:
        self.seen.append(state.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("duration", ["20ba", "40sp", "1ep", "2ep"])
def test_rates_of_a_run(duration):
    model, rates = SquaredError(), Rates()
    epochs = int(duration[0]) if duration.endswith("ep") else 1
    batches = BATCHES // epochs
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=LR),
        schedulers=Rate(Schedule(warmup=0.2, final_lr=0.1)),
        train_dataloader=DataLoader(TensorDataset(torch.rand(batches * BATCH_SIZE, 1)), batch_size=BATCH_SIZE),
        max_duration=duration,
        callbacks=[rates],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    # Composer steps its schedulers before it moves the clock, so every batch but the first has its predecessor's rate.
    expected = [LR * linear_with_warmup(max(i - 1, 0) / BATCHES, 0.2, 0.1) for i in range(BATCHES)]
    assert rates.seen == pytest.approx(expected)
