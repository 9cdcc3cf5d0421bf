"""What is scored and stands in the text of pretraining is found, and nothing else is."""

from __future__ import annotations

import json
import random

from benchmarks import overlap
from tests.tiny.tasks import write_sst2


def sentence(generator: random.Random, words: int) -> list[str]:
    return [generator.choice("abcdefgh") * generator.randint(1, 9) for _ in range(words)]


def test_a_search_by_hand_finds_the_same(monkeypatch):
    monkeypatch.setattr(overlap, "AT_A_TIME", 40)  # several pieces
    generator = random.Random(0)
    documents = [" ".join(sentence(generator, length)) for length in (3, 60, 25, 13, 90, 8)]
    words = documents[1].split()
    texts = [
        "  ".join(words[20:33]).upper() + "!",  # in other clothes
        " ".join(["new", "words", *words[5:18], "and", "more"]),  # 13 of 17
        " ".join([*words[5:12], "between", *words[13:20]]),  # 7 and 7
        " ".join(words[50:]), " ".join(words[50:59]), " ".join([*words[50:57], "another"]),  # 10, 9, 7 of 8
        " ".join(words[:7]),  # too short
        " ".join([*documents[2].split()[-7:], *documents[3].split()[:7]]),  # over two documents
        documents[5],
    ]  # fmt: skip
    found = overlap.measure({"first": texts[:4], "none": [], "rest": texts[4:]}, documents)
    assert found["sets"] == {
        "first": {"texts": 4, "searched": 4, "found": 3},
        "none": {"texts": 0, "searched": 0, "found": 0},
        "rest": {"texts": 5, "searched": 4, "found": 2},
    }
    assert found["words_of_text"] == 3 + 60 + 25 + 13 + 90 + 8

    def by_hand(text: str, document: str) -> bool:
        a, b = text.lower().rstrip("!").split(), document.split()
        n = min(len(a), 13)
        return n >= 8 and any(
            a[i : i + n] == b[j : j + n] for i in range(len(a) - n + 1) for j in range(len(b) - n + 1)
        )

    drawn = [
        " ".join(generator.choice(documents).split()[start:][:length]) for start in range(30) for length in (8, 14)
    ]
    drawn += [" ".join(sentence(generator, 9)) for _ in range(20)]
    searched = overlap.Searched(drawn)
    for piece in overlap.pieces(documents):
        searched.look_in(piece)
    assert searched.found.tolist() == [any(by_hand(text, one) for one in documents) for text in drawn]
    assert 0 < searched.found.sum() < len(drawn)


def test_the_command_counts_and_quotes_nothing(tmp_path, monkeypatch, capsys):
    write_sst2(tmp_path / "glue", train=4, dev=6)
    dev = [line.split("\t")[0] for line in (tmp_path / "glue/SST-2/dev.tsv").read_text().splitlines()[1:]]
    row = {
        "UID": "one",
        "linguistics_term": "t",
        "field": "f",
        "sentence_bad": "the cats that he had seen was not there",
    }
    pairs = [{**row, "sentence_good": f"the cats that he had seen were not there {number}"} for number in range(42)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "text.txt").write_text(f"{dev[0]}\n\nSaid he: the cats, that he had seen, were not there 41 times.\n")
    out = tmp_path / "overlap.json"
    words = [str(tmp_path / name) for name in ("glue", "pairs.jsonl", "text.txt")]
    monkeypatch.setattr("sys.argv", ["overlap", *words, "--out", str(out)])
    overlap.main()
    found = json.loads(out.read_text())
    assert found["sets"]["BLiMP, reported pairs"] == {"texts": 3, "searched": 3, "found": 1}
    assert found["sets"]["SST-2, dev"]["texts"] == len(set(dev)) and found["provenance"]["commit"]
    assert "BLiMP, reported pairs: 1 of 3 searched, of 3" in capsys.readouterr().out
    assert "cats" not in out.read_text()
