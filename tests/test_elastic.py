"""A run whose machines come and go: it moves with its newest checkpoint, and sees the batches of one that nothing happens to."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from recipe.records import read_record
from tests.cut_link import AT, CUT, KEPT, RANK_TIMEOUT_S, cut_link
from tests.elastic import PATIENCE_S, elastic_yaml, node, rendezvous, seen, starts
from tests.namespaces import HUB, Network, Refused, network, there
from tests.object_store import BUCKET
from tests.processes import wait_for
from tests.seen_batches import seen_by


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return elastic_yaml(tmp_path, tiny_dataset)


@contextmanager
def network_or_skip(*nodes: str) -> Iterator[Network]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(network(*nodes))
        except Refused as error:
            pytest.skip(f"no link was cut: network namespaces are refused here ({error}); it needs root on Linux")
        yield made


def test_one_machine_becomes_two_and_one_again(yaml, tmp_path, object_store):
    """The second comes first in the order of ranks, so the run must move there; then it vanishes with what it has, and the store
    has the newest."""
    unbroken = seen_by(yaml, f"out={tmp_path / 'unbroken'}")
    first, second = tmp_path / "first", tmp_path / "second"

    def words(folder: Path) -> tuple[str, ...]:
        return str(yaml), f"out={folder / 'run'}", f"save_folder=s3://{BUCKET}/run"

    with rendezvous() as meeting, node(first, "127.0.0.2", meeting, *words(first), holds=7) as one:
        wait_for(lambda: len(seen(first, 0)) == 7 or one.poll() is not None, PATIENCE_S)
        with node(second, "127.0.0.1", meeting, *words(second), dies=6) as two:
            assert two.wait(PATIENCE_S) == -9, (second / "log").read_text()
        assert one.wait(PATIENCE_S) == 0, (first / "log").read_text()
    assert seen(first, 0) == unbroken[:7]
    both = [here + there for here, there in zip(seen(second, 0), seen(first, 1), strict=False)]
    assert len(both) >= 5 and both == unbroken[7 : 7 + len(both)]
    assert "continues from ba7-rank0.pt on machine 1" in (second / "log").read_text()
    log = (first / "log").read_text()
    assert "error: rank 1: rank 0" in log and f"ba10-rank0.pt comes from s3://{BUCKET}/run\n" in log
    assert seen(first, 2) == unbroken[10:]
    ends, moved, whole = (read_record(folder) for folder in (first / "run", second / "run", tmp_path / "unbroken"))
    for key in ("tokens", "sequences", "batches", "status"):
        assert ends[key] == whole[key]
    assert len(ends["resumed"]) == 2 and ends["provenance"]["started"] == moved["provenance"]["started"]
    assert moved["status"] == "running", "what was there stays as it was"
    cores = whole["device"]["count"]
    devices = 3600 * ends["cost"]["device_hours"] / ends["cost"]["seconds"]
    assert cores < devices < 2 * cores, "while there were two machines, the cores of both are billed"


def test_a_machine_whose_link_is_cut(yaml, tmp_path, tiny_dataset, object_store):
    """Nothing is closed and nobody is told. Each finds out and says who is gone; the one that reaches the store goes on."""
    unbroken = seen_by(yaml, f"out={tmp_path / 'unbroken'}")
    object_store.put(tiny_dataset)
    with network_or_skip(CUT, KEPT) as net:
        times = cut_link(tmp_path, yaml, object_store, net)
    cut, kept = tmp_path / CUT, tmp_path / KEPT
    alone = seen(kept, 0) if starts(kept) == 3 else []  # it came too early
    both = [here + there for here, there in zip(seen(cut, 0), seen(kept, starts(kept) - 2), strict=True)]
    assert alone + both == unbroken[: len(alone) + AT] and len(alone) in (0, AT)
    stored = (len(alone) + AT) // 5 * 5
    assert seen(kept, starts(kept) - 1) == unbroken[stored:]
    log, there = (kept / "log").read_text(), (cut / "log").read_text()
    assert "error: rank 1: rank 0 or its machine is gone or hangs (" in log and "Traceback" not in log
    assert f"ba{stored}-rank0.pt comes from s3://{BUCKET}/run\n" in log
    assert "error: rank 0: rank 1 on machine 1 is gone or hangs (" in there
    assert RANK_TIMEOUT_S - 1 < times.line_s < RANK_TIMEOUT_S + 60
    ends, whole = (read_record(folder) for folder in (kept / "run", tmp_path / "unbroken"))
    for key in ("tokens", "sequences", "batches", "status"):
        assert ends[key] == whole[key]


def test_a_network_leaves_nothing_behind_when_a_test_fails():
    before = there()
    with pytest.raises(KeyError), network_or_skip("one") as net:
        running = subprocess.Popen([*net.inside("one"), "sleep", "600"])
        net.in_hub(lambda: socket.create_server((HUB, 0))).close()
        raise KeyError
    assert running.wait(10) == -signal.SIGKILL and there() == before
