"""The throughput benchmark: its batches, its figures, and one small run of real processes."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import peers, throughput, throughput_batches, throughput_channel, throughput_report
from kernels.backends import Requirements, resolve
from recipe.data.batch import pad_batch


def test_drawn_batches_have_one_shape_and_something_to_learn():
    batches, about = throughput_batches.drawn(length=64, sequences=6, count=3, vocabulary=2000)
    assert "log-normal, mean 427" in about
    shapes = [{name: tuple(x.shape) for name, x in b.items() if isinstance(x, torch.Tensor)} for b in batches]
    assert shapes[0] == shapes[1] == shapes[2]
    for batch in batches:
        lengths = batch["cu_seqlens"].diff()
        assert lengths.min() >= 8 and lengths.max() <= 64 and int(lengths.sum()) == len(batch["input_ids"])
        assert (batch["input_ids"][batch["masked_indices"]] == throughput_batches.MASK_ID).all()
        assert batch["labels"].min() >= throughput_batches.FIRST_WORD
        assert int((pad_batch(batch, 0)["labels"] != -100).sum()) == len(batch["labels"])
    words = torch.cat([b["input_ids"] for b in batches])
    assert len(words.unique()) < 0.8 * len(words), "words come again"


def a_row(name: str, seconds: list[float], loss: list[float], model: str = "hf") -> dict:
    return {"name": name, "model": model, "problem": None, "note": "n", "seconds": seconds, "loss": loss,
            "peak_mem_gib": 1.0, "warm_up_s": 2.0}  # fmt: skip


def test_figures(tmp_path):
    """Ours at twice the speed in the first turn and three times in the second; the ratio is the median of the turns."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    case = {"model": "m", "sizes": sizes, "length": 16, "sequences": 2, "batches": "drawn",
            "work": [{"tokens": 30, "squared": 450, "masked": 9}] * 6, "turns": 2,
            "rows": [a_row("this", [0.1] * 6, [9, 8, 7, 6, 5, 4], "this"),
                     a_row("hf eager", [0.2] * 3 + [0.3] * 3, [9, 8, 7, 9, 9, 9]),
                     {**a_row("peer", [], []), "problem": "einops is not installed"}]}  # fmt: skip
    assert throughput_report.finish(case, ceiling=1e9) == 1e9
    ours, theirs, absent = case["rows"]
    assert ours["tokens_per_s"] == pytest.approx(300) and theirs["tokens_per_s"] == pytest.approx(120)
    assert theirs["this_is_by_turn"] == pytest.approx([2, 3]) and theirs["this_is"] == pytest.approx(2.5)
    assert ours["fell"] is True and theirs["fell"] is False and absent["tokens_per_s"] is None
    # 3 x (layer: 4 products of 8 x 8 and 3 of 8 x 8, attention; head at 9 places), by hand
    layer = 30 * 2 * (4 * 64 + 3 * 64) + 4 * 8 * 450
    assert ours["mfu"] == pytest.approx(3 * (layer + 9 * (2 * 64 + 2 * 8 * 30522)) / 0.1 / 1e9)
    text = throughput_report.table(case)
    assert "not measured: einops is not installed" in text and "DID NOT FALL" in text and "by turn: 2.00 3.00" in text
    throughput_report.write([case], tmp_path / "out.json", 1e9, on_gpu=False)
    assert json.loads((tmp_path / "out.json").read_text())["cases"][0]["rows"][1]["this_is"] == pytest.approx(2.5)
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_a_run_of_real_processes(tmp_path, monkeypatch, capfd):
    """Ours, Hugging Face's, and a checkout that is none."""
    monkeypatch.setitem(throughput.SIZES, "small", (32, 1, 2, 64))
    monkeypatch.setitem(throughput.STEPS_A_TURN, "cpu", 2)
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "t.json"
    command = ["--lengths", "16", "--tokens", "64", "--turns", "2", "--only", "this", "hf eager", "none"]
    status = throughput.main([*command, "--peer", f"none={tmp_path / 'nothing'}", "--out", str(out)])
    rows = {row["name"]: row for row in json.loads(out.read_text())["cases"][0]["rows"]}
    assert "src/bert_layers.py" in rows["none"]["problem"]
    for name in ("this", "hf eager"):
        assert len(rows[name]["seconds"]) == len(rows[name]["loss"]) == 4 and rows[name]["problem"] is None
    assert rows["hf eager"]["this_is"] > 0 and status in (0, 1)
    needs = Requirements("cpu", torch.bfloat16, 16)
    chosen = [resolve(kind, "auto", needs).name for kind in ("attention", "kernels")]
    assert f"this: {', '.join(chosen)}" in capfd.readouterr().out


def test_each_step_s_seconds_and_loss_are_kept():
    """The loss as it was at the step's end, whatever becomes of its tensor, which a CUDA graph overwrites."""
    watch, loss = throughput_channel.Steps("cpu"), torch.zeros(())
    for turn in range(2):
        watch.start()
        for value in (3.0, 2.0):
            time.sleep(0.01)
            watch.step(loss.fill_(value - turn))
        answer = watch.answer()
        assert answer["loss"] == [3.0 - turn, 2.0 - turn] and all(0.01 <= one < 1 for one in answer["seconds"])
        assert 0.05 < answer["peak_mem_gib"] < 20


def test_what_is_measured_where():
    words = throughput.arguments(["--data", "here", "--peer", "mine=there"])
    settings = {"yaml": "some.yaml", "lr": 1e-3}
    for on_gpu in (False, True):
        found = {row["name"]: row for row in throughput.rows(words, settings, on_gpu)}
        assert {"this", "this + compile", "this, trainer", "hf eager", "hf sdpa + compile", "mine"} <= set(found)
        assert found["this + compile"]["compile"] and found["this"]["kept_memory"] is not on_gpu
        said = throughput.trainer_words(words, "folder", 128, 256, 12, on_gpu)
        assert f"microbatch_size={256 if on_gpu else 0}" in said
    assert throughput.main(["--seconds", "1e-9", "--lengths", "16"]) == 0, "no time, no case"


def test_bad_words(capsys):
    for words, complaint in ((["--peer", "x"], "say NAME=PATH"), (["nowhere.yaml"], "no such file")):
        with pytest.raises(SystemExit) as left:
            throughput.main(words)
        assert left.value.code == 2 and complaint in capsys.readouterr().err


def test_what_a_checkout_must_hold(tmp_path):
    with pytest.raises(peers.Absent, match="neither"):
        peers.folders(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "bert_layers.py").touch()
    assert peers.folders(tmp_path) == [tmp_path / "src"]
