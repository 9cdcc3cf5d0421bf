"""What a sweep will cost, before anything starts: against runs that were really made, and the paper's."""

import dataclasses
import re
from pathlib import Path

import pytest

from recipe import plan, records
from recipe.config import SweepConfig, load
from recipe.cost import prices
from recipe.pareto import main
from recipe.report import bill, sweep
from tests.tiny.configs import train_yaml

ROOT = Path(__file__).parents[2]
WORDS = ("data.sequence_length=32", "model.hidden_dropout_prob=0", "log_every=1", "device=cpu", "precision=fp32")


@pytest.fixture
def files(tmp_path, tiny_dataset):
    train_yaml(tmp_path, tiny_dataset, *WORDS, "eval_every=4ba", "checkpoint_every=3ba")
    (tmp_path / "sweep.yaml").write_text(
        f"out: {tmp_path / 'sweep'}\npairs: yamls/pairs/demo.yaml data=none\nmodels: ['{tmp_path / 'train.yaml'}']\n"
        "budgets: [5ba, 10ba]\nseeds: [17, 18]\n"
    )
    return tmp_path


def refused_by(capsys, *words: str) -> str:
    """The one line of a command that is refused."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def of(way: str, files: Path, *words: str) -> bill.Bill:
    """By a speed of a gigaflop a second on one core at a dollar an hour."""
    config = load(SweepConfig, str(files / "sweep.yaml"), words)
    where = bill.Where(prices.Row("core", ("cpu",), 1.0, "test"), 1)
    return bill.bill_of(way, config, where, plan.Speed(1e9, "test"), [])


def test_batches_tokens_and_disk_are_those_of_the_runs_that_are_made(files, monkeypatch):
    expected = of("sweep", files, "seeds=[17]")
    config = load(SweepConfig, str(files / "sweep.yaml"), ["seeds=[17]"])
    monkeypatch.setattr(sweep.pairs, "pairs", lambda config: None)
    for item, folder in zip(expected.items, sweep.sweep(config), strict=True):
        record = records.read_record(folder)
        written = [
            file for file in folder.rglob("*") if file.suffix in (".pt", ".safetensors") and not file.is_symlink()
        ]
        assert (item.name, item.batches) == (record["name"], record["batches"])
        # full sequences are more tokens than those of the text, and other files' headers are not counted
        assert record["tokens"] <= item.tokens
        assert item.disk == pytest.approx(sum(file.stat().st_size for file in written), rel=0.1)


def test_a_trunk_is_paid_once_and_its_branches_after_it(files):
    alone, shared = of("sweep", files), of("trunk", files)
    names = [item.name for item in shared.items]
    assert [name for name in names if name.startswith("trunk of ")] == [f"trunk of mosaic_bert-s{s}" for s in (17, 18)]
    assert [item.batches for item in shared.items] == [9, 9, 1, 1, 1, 1]
    assert shared.total().usd < alone.total().usd
    assert alone.total().usd == pytest.approx(alone.total().seconds / 3600)


def test_what_an_evaluation_adds_and_what_is_not_in_it(files):
    without = of(
        "sweep", files, "seeds=[17]", f"models=['{files / 'train.yaml'} eval_every=0ba data.eval_documents=8']"
    )
    twice = of("sweep", files, "seeds=[17]", f"models=['{files / 'train.yaml'} eval_every=5ba data.eval_documents=8']")
    step = plan.step_of(
        load(bill.TrainConfig, str(files / "train.yaml"), ["out=x"]), plan.Speed(1e9, "test"), 1
    ).seconds
    batch = load(bill.TrainConfig, str(files / "train.yaml"), ["out=x"]).batch_size
    extra = twice.items[1].seconds - without.items[1].seconds  # one more, in the middle
    assert extra == pytest.approx(step * 8 / batch / 3)
    assert any(note.startswith("pairs is not in it") for note in without.notes)


@pytest.mark.parametrize(
    "budget, batches", [("7ba", 7), ("1000sp", None), ("1ep", None), ("0.001usd", None), ("0.001h", None)]
)
def test_every_unit_of_a_budget(files, budget, batches):
    item = of("sweep", files, "seeds=[17]", f"budgets=[{budget}]").items[0]
    config = load(bill.TrainConfig, str(files / "train.yaml"), ["out=x"])
    step = plan.step_of(config, plan.Speed(1e9, "test"), 1)
    documents = bill._documents(config, "train")
    whole = {"1000sp": -(-1000 // config.batch_size), "1ep": documents // config.batch_size}
    by_time = max(1, int(3.6 / step.seconds))  # a dollar an hour: 0.001 of both are 3.6 s
    assert item.batches == (batches or whole.get(budget, by_time))


def test_epochs_of_a_dataset_that_is_not_there_and_a_processor_without_a_speed(files, capsys):
    words = [
        "sweep",
        str(files / "sweep.yaml"),
        f"models=['{files / 'train.yaml'} data.path=nowhere model.vocab_size=512']",
    ]
    line = refused_by(capsys, *words, "budgets=[1ep]", "--plan", "--gpu", "a100-80gb", "--mfu", "0.3")
    assert "nowhere has no dataset.json" in line and "give sp or tok" in line
    line = refused_by(capsys, *words, "--plan", "--gpu", "cpu-core", "--mfu", "0.3")
    assert "--record RUN" in line


def test_the_papers_figure_states_its_bill(capsys):
    text = (ROOT / "yamls/sweep/paper.yaml").read_text()
    command = re.search(r"python -m recipe\.pareto (trunk yamls/sweep/paper\.yaml --plan .*)", text)[1].split()
    assert main(command) == 0
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [f"#   {line}" for line in said] == re.findall(r"^#   .*", text, re.MULTILINE)


def test_nothing_is_written(files):
    before = sorted(files.rglob("*"))
    assert main(["sweep", str(files / "sweep.yaml"), "--plan", "--gpu", "a100-80gb", "--mfu", "0.3"]) == 0
    assert sorted(files.rglob("*")) == before


def test_sums(files):
    found = of("sweep", files)
    for key in ("batches", "tokens", "seconds", "usd", "disk"):
        assert getattr(found.total(), key) == pytest.approx(sum(getattr(item, key) for item in found.items))
    assert dataclasses.asdict(found.total())["name"] == "in all"
