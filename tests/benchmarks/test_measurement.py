"""How benchmarks measure: laps, turns, spread and ratios, ceilings, and the file of a result."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measurement
from recipe import records
from recipe.training import ceilings

ROOT = Path(__file__).resolve().parents[2]


def test_a_stopwatch_times_each_lap_since_its_start():
    watch = measurement.Stopwatch("cpu")
    time.sleep(0.03)
    watch.start()
    for seconds in (0.001, 0.02):
        time.sleep(seconds)
        watch.lap()
    short, long = watch.read()
    assert 0.001 <= short < 0.02 <= long < 1
    seconds, answer = measurement.timed(lambda: time.sleep(0.001) or "done")
    assert 0.001 <= seconds < 1 and answer == "done"


def test_a_gpu_s_laps_are_those_of_its_clock_and_waited_for_once(monkeypatch):
    """The host records four marks and waits at the end; the device passed them at 0, 5, 5 and 30 milliseconds."""
    clock, waited = iter((0.0, 5.0, 5.0, 30.0)), []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing and not waited

        def record(self) -> None:
            self.at = next(clock)

        def elapsed_time(self, end: Event) -> float:
            assert waited, "read before the device was there"
            return end.at - self.at

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(Event=Event, synchronize=lambda: waited.append(1)))
    watch = measurement.Stopwatch("cuda")
    for _ in range(3):
        watch.lap()
    assert watch.read() == [0.005, 0.0, 0.025] and len(waited) == 1


def test_turns_begin_with_each_in_turn_and_the_first_is_not_counted():
    order = []

    def call(name):
        order.append(name)
        return len(order)

    found = measurement.in_turns({name: lambda name=name: call(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}
    assert measurement.in_turns({"a": lambda: 1}, rounds=2, warm_up=0) == {"a": [1, 1]}
    assert measurement.in_turns({}, rounds=2) == {}


def test_no_round_begins_after_the_limit_once_there_are_enough():
    found = measurement.in_turns({"a": lambda: time.sleep(0.01)}, rounds=1000, limit_s=0.0)
    assert len(found["a"]) == measurement.LEAST_ROUNDS
    found = measurement.in_turns({"a": lambda: time.sleep(0.01)}, rounds=1000, limit_s=0.2)
    assert measurement.LEAST_ROUNDS < len(found["a"]) <= 21


def test_spread_and_ratios():
    assert measurement.spread([3, 1, 2, 5, 4, 6], 10) == {"p20": 20.0, "p50": 35.0, "p80": 50.0}
    assert measurement.spread([0.5, 1.0]) == {"p20": pytest.approx(0.6), "p50": 0.75, "p80": pytest.approx(0.9)}
    assert measurement.ratios([2, 4, 9, 9], [1, 2, 3, 3], turns=2) == [2, 3]
    assert measurement.ratios([2, 4, 9], [1, 4, 3], turns=3) == [2, 1, 3]


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setitem(measurement.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(ceilings.SIDES, "cpu", (128,))
    found = measurement.measure_ceilings("cpu", torch.float32, seconds=0.05)
    assert found.flops_per_s > 1e7 and found.bytes_per_s > 1e7


def test_a_result_has_the_provenance_of_a_run(tmp_path):
    file = tmp_path / "new" / "result.json"
    written = measurement.write(file, {"rows": [1.5]})
    assert json.loads(file.read_text()) == written and written["rows"] == [1.5]
    assert set(written["provenance"]) >= {*records.provenance(), "device", "torch", "triton"}
    own = measurement.write(file, {"provenance": {"device": "mine"}})
    assert json.loads(file.read_text()) == own == {"provenance": {"device": "mine"}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        measurement.write(file, {"rows": [float("nan")]})
    assert json.loads(file.read_text()) == own and list(file.parent.iterdir()) == [file]


def test_a_result_is_written_where_little_is_installed(tmp_path):
    """A GPU's machine may have torch and numpy alone; its results say so, without a plot."""
    code = (
        "import sys\n"
        "for name in ('yaml', 'omegaconf', 'composer', 'streaming', 'transformers', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from benchmarks import measurement\n"
        "assert measurement.figure(1, 1) is None\n"
        "print(measurement.write(Path(sys.argv[1]), {})['provenance']['commit'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(records.provenance()["commit"])
