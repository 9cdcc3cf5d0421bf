"""Vectors of texts: InfoNCE against its definition, what is trained on, and that related texts come near each other."""

import json
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from recipe.config import FinetuneConfig, PredictConfig, RetrieveConfig, load
from recipe.data import tokenizer
from recipe.finetune.__main__ import finetune
from recipe.finetune.examples import Examples
from recipe.finetune.kinds import KINDS
from recipe.finetune.kinds.embedding import altered, cosines, info_nce
from recipe.predict import predict
from recipe.retrieve import retrieve
from tests.mistakes import refused
from tests.tiny.families import write_family
from tests.tiny.models import odd_sizes, with_head, write_tokenizer
from tests.tiny.tasks import ANIMALS, COLOURS, sentence, write_tsv


@pytest.mark.parametrize("texts", [2, 3])
def test_info_nce_by_its_definition(texts):
    draw = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(5 * texts, 8, generator=draw), dim=1)
    first, second = rows[0::texts], rows[1::texts]
    others = [second, *([rows[2::texts]] if texts == 3 else [])]
    expected = 0.0
    for i in range(5):
        scores = [math.exp(float(first[i] @ one) / 0.1) for group in others for one in group]
        expected -= math.log(scores[i] / sum(scores)) / 5
    assert float(info_nce(rows, torch.eye(texts).repeat(5, 1), temperature=0.1)) == pytest.approx(expected, rel=1e-5)


def test_a_mirror_lacks_a_few_characters_and_is_the_same_every_time():
    for text in ("a", "ab", "the cat sat on the mat"):
        assert altered(text) == altered(text) and 0 < len(altered(text)) <= len(text)
    assert len(altered("the cat sat on the mat")) == len("the cat sat on the mat") - 5


def test_texts_of_an_example_are_its_rows(tmp_path):
    write_tokenizer(tmp_path)
    torch.manual_seed(0)
    kind = KINDS["embedding"]
    examples = Examples([("a cat", "the dog ran"), ("the house", "a")], [1.0, 2.0])
    encoded = kind.encode(tokenizer.encoder(tmp_path), examples, 16)
    model = with_head(odd_sizes(), 0, kind).eval()
    with torch.no_grad():
        rows = model(encoded.stream([1, 0]))
        alone = model(encoded.stream([0]))
    assert rows.shape[0] == 4 and encoded.rows([1, 0]).tolist() == [2, 3, 0, 1]
    torch.testing.assert_close(rows[2:], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    ordered = np.empty_like(rows.numpy())
    ordered[encoded.rows([1, 0])] = rows.numpy()
    assert cosines(encoded, ordered)[0] == pytest.approx(float(alone[0] @ alone[1]), abs=1e-5)


def task(folder, kind, checkpoint, data, *words):
    """Near or not, of STS-B's columns."""
    (folder / "task.yaml").write_text(
        "name: near\ntrain: [train.tsv]\ntest: [dev.tsv]\ntext: [sentence1, sentence2]\nlabel: score\nseeds: [19]\nlr: 3e-3\n"
        "epochs: 6\nmax_length: 40\ndevice: cpu\nprecision: fp32\n"
    )
    words = (f"kind={kind}", f"checkpoint={checkpoint}", f"data={data / 'STS-B'}", *words)
    return finetune(load(FinetuneConfig, str(folder / "task.yaml"), words))


@pytest.mark.parametrize("family", [False, True], ids=["own", "transformers"])
def test_pairs_that_belong_together_come_near(tmp_path, run, family):
    """A sentence about a colour or an animal belongs to others about the same one."""
    write_same(tmp_path / "STS-B")
    checkpoint = write_family(tmp_path / "family", "bert") if family else run
    found = {}
    for name, words in (("floor", ["lr=1e-9"]), ("out", ["positives=4"])):
        record = task(tmp_path, "embedding", checkpoint, tmp_path, f"out={tmp_path / name}", *words)
        found[name] = record["finetune"]["tasks"]["near"]["score"]
    assert record["sequences"] == 6 * 200 and found["out"] > max(found["floor"] + 10, 40), found
    file, answers = tmp_path / "STS-B" / "dev.tsv", tmp_path / "answers.jsonl"
    settings = {"model": str(tmp_path / "out"), "file": str(file), "out": str(answers)}
    predict(PredictConfig(**settings, precision="fp32", device="cpu"))
    predicted = [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]
    gold = [float(line.split("\t")[-1]) for line in file.read_text().splitlines()[1:]]
    assert 100 * spearmanr(gold, predicted).statistic == pytest.approx(found["out"], abs=1e-6)


def write_same(folder):
    draw, words = random.Random(3), [*COLOURS, *ANIMALS]
    for split, count in (("train", 400), ("dev", 80)):
        rows = [("sentence1", "sentence2", "score")]
        for number in range(count):
            word = draw.choice(words)
            other = word if number % 2 else draw.choice([one for one in words if one != word])
            rows.append((sentence(word, draw), sentence(other, draw), 5 * (number % 2)))
        write_tsv(folder / f"{split}.tsv", rows)


def test_mirrors_need_no_label(tmp_path, run):
    write_same(tmp_path / "STS-B")
    train = tmp_path / "STS-B" / "train.tsv"
    rows = [line.split("\t")[:-1] for line in train.read_text().splitlines()]
    train.write_text("".join("\t".join(row) + "\n" for row in rows))  # without its scores
    record = task(tmp_path, "mirror", run, tmp_path, f"out={tmp_path / 'out'}", "epochs=1")
    assert record["sequences"] == len({text for row in rows[1:] for text in row})


def test_pairs_of_which_none_belong_together_are_refused(tmp_path, run):
    write_same(tmp_path / "STS-B")
    says = refused(lambda: task(tmp_path, "embedding", run, tmp_path, f"out={tmp_path / 'out'}", "positives=9"))
    assert says == "positives=9.0: no row of train has so much in `score`; lower it" and not (tmp_path / "out").exists()


def write_search(folder, draw):
    """Documents about colours and animals; a query's are those with its word."""
    words = [*COLOURS, *ANIMALS]
    rows = {
        "documents": [{"id": f"d{i}", "title": "", "text": sentence(words[i % 10], draw)} for i in range(60)],
        "queries": [{"id": f"q{i}", "text": word} for i, word in enumerate(words)],
        "judgements": [{"query": f"q{i % 10}", "document": f"d{i}", "grade": 1 + i // 30} for i in range(60)],
    }
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def search_yaml(folder, *lines):
    (folder / "search.yaml").write_text(
        "\n".join([f"data: {folder}", *(f"{name}: [{name}.jsonl]" for name in ("documents", "queries", "judgements")),
                   "document_text: [title, text]", "device: cpu", "precision: fp32", "max_length: 40", *lines]) + "\n"
    )  # fmt: skip
    return str(folder / "search.yaml")


def test_documents_are_ranked_and_judged(tmp_path, run, capsys):
    write_search(tmp_path, random.Random(0))
    found = retrieve(load(RetrieveConfig, search_yaml(tmp_path), [f"checkpoint={run}", f"out={tmp_path / 'out'}"]))
    # the word itself decides for TF-IDF, which puts one of the six with it first
    assert found["tfidf"]["mrr"] == 100.0 and found["queries"] == 10
    assert 0 < found["metrics"]["ndcg@10"] < 100 and found["metrics"]["recall@100"] == 100.0
    assert "TF-IDF" in capsys.readouterr().out
    rankings = [json.loads(line) for line in (tmp_path / "out" / "rankings.jsonl").read_text().splitlines()]
    assert len(rankings) == 10
    for one in rankings:
        cosines_of_one = list(one["documents"].values())
        assert len(cosines_of_one) == 60 and cosines_of_one == sorted(cosines_of_one, reverse=True)


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("judgements", '{"query": "q0", "document": "d99", "grade": 1}', "`d99` is in no row of documents"),
        ("judgements", '{"query": "q0", "document": "d1", "grade": "x"}', "grade `x` is not a number"),
        ("queries", '{"id": "q0", "text": "again"}', "id `q0` stands there twice"),
        ("queries", '{"id": "q77", "text": " "}', "query `q77` is empty"),
    ],
)
def test_mistakes_in_the_files_are_named_with_their_line(tmp_path, run, name, line, says):
    write_search(tmp_path, random.Random(0))
    with (tmp_path / f"{name}.jsonl").open("a") as stream:
        stream.write(line + "\n")
    count = len((tmp_path / f"{name}.jsonl").read_text().splitlines())
    message = refused(lambda: retrieve(load(RetrieveConfig, search_yaml(tmp_path), [f"checkpoint={run}"])))
    assert says in message and f"{name}.jsonl:{count}:" in message
