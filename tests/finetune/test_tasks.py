from pathlib import Path

import pytest

from recipe.errors import UserError
from recipe.finetune.tasks import TASKS, choose_tasks, read_task

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "glue"


def write(data: Path, task: str, **files: str | bytes) -> Path:
    folder = data / task
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.tsv").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_the_table_holds_the_published_hyperparameters():
    seeds = (19, 8364, 717, 10536, 90166)
    published = {  # lr, epochs, batch, weight decay, seeds
        "MNLI": (5e-5, 3, 48, 5e-6, seeds[:1]),
        "QQP": (3e-5, 5, 16, 3e-6, seeds[:1]),
        "QNLI": (1e-5, 10, 16, 1e-6, seeds[:1]),
        "SST-2": (3e-5, 3, 16, 3e-6, seeds[:3]),
        "CoLA": (5e-5, 10, 32, 5e-6, seeds[:4]),
        "RTE": (1e-5, 3, 16, 1e-5, seeds),
        "MRPC": (8e-5, 10, 32, 8e-6, seeds),
        "STS-B": (3e-5, 10, 32, 3e-6, seeds),
    }
    rows = {t.name: (t.lr, t.epochs, t.batch_size, t.weight_decay, t.seeds) for t in TASKS.values()}
    assert rows == published
    assert {task.name for task in TASKS.values() if task.from_mnli} == {"RTE", "MRPC", "STS-B"}
    assert next(iter(TASKS)) == "MNLI"  # before those that start from it


def test_cola_has_no_header(tmp_path):
    write(tmp_path, "CoLA", train="gj04\t1\t\tFirst row counts.\nc\t0\t*\tSo the second.\n", dev="gj\t0\t*\tx")
    found = read_task(str(tmp_path), TASKS["CoLA"])
    assert found.train.sentences == [("First row counts.",), ("So the second.",)]
    assert found.train.labels == [1, 0] and found.dev["dev"].labels == [0] and found.kind.name == "classification"


def test_mrpc_with_byte_order_mark_and_unbalanced_quotes(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    train = header + '1\t1\t2\t"He said\tHe said "\n0\t3\t4\tplain\t"quoted" , twice"\n'
    write(tmp_path, "MRPC", train=train, dev=header + "0\t1\t2\ta\tb\n\n\n")
    found = read_task(str(tmp_path), TASKS["MRPC"])
    assert found.train.sentences == [('"He said', 'He said "'), ("plain", '"quoted" , twice"')]
    assert found.train.labels == [1, 0] and len(found.dev["dev"]) == 1


def test_only_a_line_feed_ends_a_row(tmp_path):
    content = "index\tsentence1\tsentence2\tscore\r\n0\ta\x85b\u2028c\x0bd\te\t2.500\r\n1\tf\t\t5\r\n"
    write(tmp_path, "STS-B", train=content, dev=content)
    found = read_task(str(tmp_path), TASKS["STS-B"])
    assert found.train.sentences == [("a\x85b\u2028c\x0bd", "e"), ("f", "")]
    assert found.train.labels == [2.5, 5.0] and found.kind.name == "regression"


def test_mnli_is_scored_on_two_files_of_other_columns(tmp_path):
    train = "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tp\th\tneutral\tcontradiction\n"
    dev = "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n0\tq\ti\tneutral\tneutral\tentailment\n"
    write(tmp_path, "MNLI", train=train, dev_matched=dev, dev_mismatched=dev)
    found = read_task(str(tmp_path), TASKS["MNLI"])
    assert found.train.labels == [2] and list(found.dev) == ["dev_matched", "dev_mismatched"]
    assert found.dev["dev_mismatched"].labels == [0] and found.dev["dev_matched"].sentences == [("q", "i")]


@pytest.mark.parametrize(
    ("task", "train", "message"),
    [
        ("SST-2", "sentence\tlabel\nfine\t1\nno label\n", r"train\.tsv:3: 1 columns instead of 2"),
        ("SST-2", "sentence\tlabel\nfine\t1\t7\n", r"train\.tsv:2: 3 columns instead of 2"),
        ("SST-2", "sentence\tlabel\n\nfine\t1\n", r"train\.tsv:2: 1 columns instead of 2"),
        ("SST-2", "sentence\tlabel\nfine\t2\n", r"train\.tsv:2: label `2`; known are 0, 1"),
        ("SST-2", "sentence\tlabel\nfine\t\n", r"train\.tsv:2: label ``"),
        ("SST-2", "text\tlabel\nfine\t1\n", r"train\.tsv:1: no column `sentence`"),
        ("SST-2", "sentence\tlabel\n", r"train\.tsv: no example"),
        ("SST-2", "", r"train\.tsv: no example"),
        ("SST-2", b"sentence\tlabel\nfine\t1\ncaf\xe9\t0\n", r"train\.tsv:3: not UTF-8"),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\tmuch\n", r"train\.tsv:2: score `much`"),
        ("STS-B", "sentence1\tsentence2\tscore\na\tb\tnan\n", r"train\.tsv:2: score `nan`"),
    ],
)
def test_a_broken_row_is_named(tmp_path, task, train, message):
    write(tmp_path, task, train=train, dev=train)
    with pytest.raises(UserError, match=message) as caught:
        read_task(str(tmp_path), TASKS[task])
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_a_present_task_is_an_error(tmp_path):
    write(tmp_path, "SST-2", train="sentence\tlabel\nfine\t1\n")
    with pytest.raises(UserError, match=r"dev\.tsv: cannot be read"):
        read_task(str(tmp_path), TASKS["SST-2"])


def test_torn_rows_of_qqp_are_counted_and_only_in_training(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    torn = '7\t1\t2\t"Was it?\n"\tIt was?\t0\n'
    whole = "8\t1\t2\tWhy?\tWhy not?\t1\n"
    write(tmp_path, "QQP", train=header + torn + whole, dev=header + whole)
    found = read_task(str(tmp_path), TASKS["QQP"])
    assert found.torn_rows == 2 and found.train.sentences == [("Why?", "Why not?")]
    write(tmp_path, "QQP", dev=header + torn + whole)
    with pytest.raises(UserError, match=r"dev\.tsv:2: 4 columns instead of 6"):
        read_task(str(tmp_path), TASKS["QQP"])
    write(tmp_path, "QQP", train=header + torn * 30 + whole, dev=header + whole)
    with pytest.raises(UserError, match=r"train\.tsv:22: 4 columns"):
        read_task(str(tmp_path), TASKS["QQP"])


def test_a_part_of_training_is_drawn_from_all_of_it_and_always_the_same(tmp_path):
    rows = "".join(f"{n}\t{int(n >= 50)}\n" for n in range(100))
    write(tmp_path, "SST-2", train="sentence\tlabel\n" + rows, dev="sentence\tlabel\nx\t1\n")
    part, again = (read_task(str(tmp_path), TASKS["SST-2"], 40).train for _ in range(2))
    assert part == again and len({texts for texts in part.sentences}) == 40 and 8 < sum(part.labels) < 32
    assert all(int(texts[0]) // 50 == label for texts, label in zip(part.sentences, part.labels, strict=True))
    assert len(read_task(str(tmp_path), TASKS["SST-2"], 1000).train) == 100


def test_tasks_are_chosen_in_the_tables_order_and_the_absent_named(tmp_path):
    for name in ("STS-B", "CoLA", "unrelated"):
        (tmp_path / name).mkdir()
    chosen, absent = choose_tasks(str(tmp_path), [])
    assert [task.name for task in chosen] == ["CoLA", "STS-B"]
    assert absent == ["MNLI", "QQP", "QNLI", "SST-2", "RTE", "MRPC"]
    chosen, absent = choose_tasks(str(tmp_path), ["STS-B"])
    assert [task.name for task in chosen] == ["STS-B"] and "CoLA" in absent and len(absent) == 7


def test_what_cannot_be_chosen(tmp_path):
    with pytest.raises(UserError, match=r"no task in it"):
        choose_tasks(str(tmp_path), [])
    (tmp_path / "CoLA").mkdir()
    with pytest.raises(UserError, match=r"no task `Cola`; did you mean CoLA\?"):
        choose_tasks(str(tmp_path), ["Cola"])
    with pytest.raises(UserError, match=r"RTE is not in .*; there are CoLA"):
        choose_tasks(str(tmp_path), ["CoLA", "RTE"])
    with pytest.raises(UserError, match=r"no such folder"):
        choose_tasks(str(tmp_path / "nowhere"), [])


def test_the_hub_has_all_of_glue_and_says_so_where_it_cannot_be_reached(monkeypatch):
    import datasets

    chosen, absent = choose_tasks("hub", [])
    assert len(chosen) == 8 and absent == []

    def unreachable(*_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"data=hub: nyu-mll/glue \(cola\) cannot be loaded: no route; give data=FOLDER"
    ):
        read_task("hub", TASKS["CoLA"])


def test_the_hubs_columns_and_splits(monkeypatch):
    import datasets

    def table(name, config, split):
        assert (name, config) == ("nyu-mll/glue", "mnli")
        columns = {"premise": [f"p {split}"], "hypothesis": ["h"], "label": [2], "idx": [0]}
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", table)
    found = read_task("hub", TASKS["MNLI"])
    assert found.train.sentences == [("p train", "h")] and found.train.labels == [2]
    assert found.dev["dev_mismatched"].sentences == [("p validation_mismatched", "h")]


@pytest.mark.parametrize(
    ("name", "train", "dev", "positive"),
    [
        ("CoLA", 8551, 1043, 721),
        ("MRPC", 3667, 408, 279),
        ("RTE", 2490, 277, 131),
        ("SST-2", 67349, 872, 444),
        ("STS-B", 5749, 1500, None),
    ],
)
def test_the_real_files(name, train, dev, positive):
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} of the benchmark is not at {REAL}")
    found = read_task(str(REAL), TASKS[name])
    assert (len(found.train), len(found.dev["dev"])) == (train, dev)
    if positive is None:
        assert min(found.train.labels) >= 0 and max(found.train.labels) <= 5
    else:
        assert sum(found.dev["dev"].labels) == positive
