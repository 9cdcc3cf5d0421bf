import json
import math
import random

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from recipe.data.batch import count_sequences, count_tokens
from recipe.errors import UserError
from recipe.finetune.batches import EncodedExamples, ExampleCollator
from recipe.finetune.examples import Examples
from recipe.finetune.fit import Count, Fit, fine_tune
from recipe.finetune.kinds import CLASSIFICATION, REGRESSION
from recipe.system.hardware import find_hardware
from recipe.training.checkpoint import find_checkpoint
from tests.reads import Reads
from tests.tiny.models import write_encoder, write_tokenizer
from tests.tiny.tasks import ANIMALS, COLOURS, sentence


def test_metrics_against_hand_computed_values():
    labels, predictions = np.array([1, 1, 1, 0, 0, 0, 0, 1]), [1, 1, 0, 0, 0, 1, 0, 1]  # 3 tp, 1 fn, 1 fp, 3 tn
    found = CLASSIFICATION.measure(("accuracy", "f1", "matthews"), labels, predictions)
    assert found == pytest.approx({"accuracy": 75.0, "f1": 75.0, "matthews": 50.0})
    labels, predictions = np.array([1, 1, 1, 0]), [1, 1, 0, 1]
    found = CLASSIFICATION.measure(("accuracy", "f1", "matthews"), labels, predictions)
    assert found["f1"] == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert found["matthews"] == pytest.approx(100 * sk.matthews_corrcoef(labels, predictions)) and found["matthews"] < 0


def test_correlations_against_hand_computed_values():
    labels, predictions = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0, 9.0])
    found = REGRESSION.measure(("pearson", "spearman"), labels, predictions)
    assert found["spearman"] == pytest.approx(100.0)
    assert found["pearson"] == pytest.approx(100 * 15 / math.sqrt(5 * 49))
    assert REGRESSION.measure(("pearson",), labels, -predictions)["pearson"] == pytest.approx(-found["pearson"])


def test_constant_predictions_are_worth_nothing_and_are_no_nan():
    numbers = REGRESSION.measure(("pearson", "spearman"), np.array([1.0, 2.0, 3.0]), np.full(3, 2.5))
    assert numbers == {"pearson": 0.0, "spearman": 0.0}
    classes = CLASSIFICATION.measure(("matthews", "f1", "accuracy"), np.array([1, 0, 1]), [0, 0, 0])
    assert classes == pytest.approx({"matthews": 0.0, "f1": 0.0, "accuracy": 100 / 3})


def test_outputs_are_decoded_as_labels_are():
    assert CLASSIFICATION.decode(None, np.array([[0.1, 0.2], [0.5, -1.0]])).tolist() == [1, 0]
    assert REGRESSION.decode(None, np.array([[0.5], [-1.0]], dtype=np.float32)).tolist() == [0.5, -1.0]


def pairs(count: int) -> Examples:
    chance = random.Random(1)
    two = [(sentence(chance.choice(COLOURS), chance), sentence(chance.choice(ANIMALS), chance)) for _ in range(count)]
    return Examples(two, [float(i) for i in range(count)])


def test_stream_and_padded_batches_hold_the_same(tmp_path):
    write_encoder(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    encoded = REGRESSION.encode(checkpoint.tokenizer, pairs(9), 64)
    chosen = [7, 0, 3, 8]
    stream, padded = encoded.stream(chosen), encoded.padded(chosen, checkpoint.pad_id)
    real = padded["attention_mask"].bool()
    assert torch.equal(padded["input_ids"][real], stream["input_ids"])
    assert torch.equal(padded["token_type_ids"][real], stream["token_type_ids"])
    assert (padded["input_ids"][~real] == checkpoint.pad_id).all() and (~real).any()
    assert real.shape == (4, stream["max_seqlen"]) and stream["cu_seqlens"].dtype == torch.int32
    assert torch.equal(real.sum(1), stream["cu_seqlens"].diff().long())
    assert stream["labels"].tolist() == padded["labels"].tolist() == [7.0, 0.0, 3.0, 8.0]
    assert count_tokens(stream) == count_tokens(padded) == {"total": len(stream["input_ids"]), "loss_generating": 4}
    assert torch.equal(padded["input_ids"].flatten()[padded["indices"]], stream["input_ids"])
    assert count_sequences(stream) == count_sequences(padded) == 4


def test_a_pair_is_tokenised_as_bert_does(tmp_path):
    from transformers import AutoTokenizer

    write_encoder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    encoded = REGRESSION.encode(find_checkpoint(str(tmp_path)).tokenizer, pairs(5), 12)
    for number, (first, second) in enumerate(pairs(5).sentences):
        wanted = theirs(first, second, truncation="longest_first", max_length=12)
        batch = encoded.stream([number])
        assert batch["input_ids"].tolist() == wanted["input_ids"] and len(wanted["input_ids"]) <= 12
        assert batch["token_type_ids"].tolist() == wanted["token_type_ids"]


def test_the_longer_text_of_a_pair_is_cut_and_counted(tmp_path):
    write_tokenizer(tmp_path)
    write_encoder(tmp_path)
    tokenizer = find_checkpoint(str(tmp_path)).tokenizer
    examples = Examples([("red", "the tree " * 50), ("red", "tree"), ("the " * 6, "tree")], [0, 1, 0])
    encoded = CLASSIFICATION.encode(tokenizer, examples, 10)
    assert np.diff(encoded.offsets).tolist() == [10, 5, 10] and encoded.truncated == 1
    assert encoded.stream([0])["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]  # `red` is whole
    assert encoded.labels.dtype == np.int64


def test_a_special_token_in_a_text_is_text(tmp_path):
    write_encoder(tmp_path)
    tokenizer = find_checkpoint(str(tmp_path)).tokenizer
    encoded = REGRESSION.encode(tokenizer, Examples([("red [SEP] [MASK] [CLS]",)], [0]), 32)
    special = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]")]
    assert [(encoded.ids == one).sum() for one in special] == [1, 1, 0]


class Bias(nn.Module):
    """Learns one number; keeps the labels that it was trained on, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []

    def forward(self, batch: dict) -> torch.Tensor:
        if self.training:
            self.seen.append(batch["labels"].tolist())
        return self.bias + torch.zeros(len(batch["labels"]), 1)


def numbers(count: int) -> EncodedExamples:
    values = np.arange(count, dtype=np.float32)
    return EncodedExamples(np.ones(count, np.int32), np.zeros(count, np.int8), np.arange(count + 1), values, 0)


def fit(seed: int, epochs: float = 3, lr: float = 0.1) -> tuple[Bias, object]:
    model = Bias()
    hardware = find_hardware("cpu", "fp32", 1)
    job = Fit("test", lr=lr, weight_decay=0.0, epochs=epochs, batch_size=4, seed=seed)
    return model, fine_tune(model, REGRESSION, job, numbers(10), {"dev": numbers(5)}, ExampleCollator(1000), hardware)


def test_every_epoch_is_a_new_order_of_all_examples():
    model, outcome = fit(seed=19)
    assert [len(batch) for batch in model.seen] == [4, 4, 2] * 3
    epochs = [sum(model.seen[start : start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and sorted(epochs[0]) != epochs[0]
    assert (outcome.tokens, outcome.sequences, outcome.batches) == (30, 30, 9)
    assert outcome.outputs["dev"].shape == (5, 1) and outcome.seconds > 0
    assert fit(seed=19)[0].seen == model.seen
    assert fit(seed=717)[0].seen != model.seen


@pytest.mark.parametrize("pad_id", [None, 0], ids=["stream", "padded"])
def test_parts_hold_every_example_once_within_the_budget(pad_id):
    chance = np.random.default_rng(4)
    lengths = chance.integers(3, 60, 200)
    lengths[17] = 250  # alone longer than the budget
    offsets = np.concatenate([[0], lengths.cumsum()])
    examples = EncodedExamples(np.ones(offsets[-1], np.int32), np.zeros(offsets[-1], np.int8), offsets, lengths, 0)
    collator = ExampleCollator(128, pad_id)
    indices = chance.permutation(200)[:90].tolist()
    for chosen in (indices, range(200), [17], [3, 1]):
        parts = collator.parts(examples, chosen)
        assert sorted(i for part in parts for i in part) == sorted(chosen)
        for part in parts:
            batch = collator.batch(examples, part)
            assert batch["input_ids"].numel() <= 128 or part == [17]
    assert collator.parts(examples, [3, 1]) == [[3, 1]]  # what fits keeps its order
    slots = sum(collator.batch(examples, part)["input_ids"].numel() for part in collator.parts(examples, range(200)))
    assert slots < 1.3 * offsets[-1]  # sorted, so hardly any padding
    assert len(collator.parts(examples, range(200))) < 1.3 * offsets[-1] / 128


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_a_budget_changes_what_runs_at_a_time_and_not_what_is_learnt(tmp_path, kind):
    write_encoder(tmp_path, kind)
    file = tmp_path / "config.json"
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | no_dropout))
    checkpoint = find_checkpoint(str(tmp_path))
    hardware = find_hardware("cpu", "fp32", 1)
    data = REGRESSION.encode(checkpoint.tokenizer, pairs(24), 32)
    job = Fit("test", lr=1e-3, weight_decay=0.0, epochs=2, batch_size=8, seed=3)
    found = []
    for budget in (10_000, 40):
        torch.manual_seed(0)
        model = checkpoint.fine_tuned(REGRESSION, 1, checkpoint.resolve_backends(hardware))
        for parameter in model.parameters():  # so that texts differ in their predictions
            parameter.data *= 10 if parameter.dim() == 2 else 1
        ran, real = [], model.forward

        def watched(batch, ran=ran, real=real):
            ran.append(batch["input_ids"].numel())
            return real(batch)

        model.forward = watched
        collator = ExampleCollator(budget, checkpoint.padding)
        outcome = fine_tune(model, REGRESSION, job, data, {"dev": data}, collator, hardware)
        assert (outcome.batches, outcome.sequences) == (6, 48) and max(ran) <= budget
        assert len(ran) == 7 if budget == 10_000 else len(ran) > 30
        found.append(outcome)
    one, other = found
    assert one.tokens == other.tokens == 2 * len(data.ids)
    np.testing.assert_allclose(one.outputs["dev"], other.outputs["dev"], rtol=1e-3, atol=1e-4)
    assert np.ptp(one.outputs["dev"]) > 0.01  # so that an order that was mixed up would show


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_no_batch_of_a_fine_tuning_is_waited_for(tmp_path, monkeypatch, kind):
    """By the trainer of pretraining: its small batches feel a read the most."""
    write_encoder(tmp_path, kind)
    checkpoint, hardware = find_checkpoint(str(tmp_path)), find_hardware("cpu", "fp32", ranks=1)
    data = REGRESSION.encode(checkpoint.tokenizer, pairs(40), 32)
    reads, done, counted = Reads(), [], Count.batch_end

    def watch(self, state, logger):
        counted(self, state, logger)
        done.append(state.timestamp.batch.value)
        if len(done) == 2:
            reads.__enter__()
            torch.ones(()).item()  # what is looked for is found
        elif len(done) == 7:
            reads.__exit__(None, None, None)

    monkeypatch.setattr(Count, "batch_end", watch)
    monkeypatch.setattr(
        "recipe.finetune.fit.REPORT_EVERY_S", math.inf
    )  # a report waits, and on a busy machine one is soon due
    model = checkpoint.fine_tuned(REGRESSION, 1, checkpoint.resolve_backends(hardware))
    job = Fit("test", lr=1e-3, weight_decay=0.0, epochs=1, batch_size=4, seed=3)
    fine_tune(model, REGRESSION, job, data, {"dev": data}, ExampleCollator(60, checkpoint.padding), hardware)
    assert len(done) == 10 and reads.readers[0][0] == __file__ and reads.around() == []


def test_a_part_of_an_epoch_and_the_learning_rates_of_the_schedule():
    model, outcome = fit(seed=1, epochs=0.5)
    assert outcome.batches == 2 and len(model.seen) == 2
    model, outcome = fit(seed=1, epochs=20, lr=0.001)
    # the gradient keeps its sign, so that each of Adam's steps is about one learning rate long
    steps = [min(i / 60 / 0.06, (1 - i / 60) / 0.94) for i in range(60)]
    assert model.bias.item() == pytest.approx(0.001 * sum(steps), rel=0.15)


def test_a_loss_that_runs_away_is_an_error_with_a_remedy():
    with pytest.raises(UserError, match="test: the loss ran away .* set a smaller lr_scale"):
        fit(seed=1, lr=float("1e30"), epochs=40)
