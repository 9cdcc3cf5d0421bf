"""Ranks that no longer answer are named: the silent ones, those that are behind, those that another one named before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from recipe.training import nodes, pulse
from recipe.training.pulse import Pulse
from tests.mistakes import refused


@pytest.fixture
def ranks(monkeypatch) -> Iterator[list[Pulse]]:
    """Four on two machines, in this process; between two looks of one, all but those that are dead say that they live."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = [Pulse(store, rank, 4, machine=rank // 2) for rank in range(4)]
    for one in found:
        one.met, one.lives = 7, True
        one.say()
    monkeypatch.setattr(pulse.time, "sleep", lambda _: [one.say() for one in found if one.lives])
    yield found  # while the store is there


def test_nobody_is_named_who_lives_and_has_come_as_far(ranks):
    assert ranks[0].lost() == []


def test_the_silent_are_named(ranks):
    ranks[2].lives = ranks[3].lives = False
    assert ranks[0].lost() == ["rank 2 on machine 1", "rank 3 on machine 1"]


def test_who_lives_and_does_not_come_is_named(ranks):
    ranks[1].met = 6
    assert ranks[3].lost() == ["rank 1 on machine 0"]
    assert ranks[1].lost() == ["rank 1 on machine 0"], "as the other one says, by now"


def test_who_ended_because_of_another_is_not_the_cause(ranks):
    ranks[2].lives = False
    assert ranks[1].lost() == ["rank 2 on machine 1"]
    ranks[1].lives = False
    assert ranks[0].lost() == ["rank 2 on machine 1"]


def test_a_store_that_does_not_answer_is_waited_for_a_while(ranks, monkeypatch):
    assert not pulse._listens(SimpleNamespace(host="127.0.0.1", port=9))
    monkeypatch.setattr(pulse, "_LOOK_S", 0.01)
    monkeypatch.setattr(pulse, "_STORE_S", 0.01)
    answers = threading.Event()
    monkeypatch.setattr(ranks[3], "_look", answers.wait)
    assert ranks[3].lost() == ["rank 0 or its machine"]
    answers.set()


@pytest.mark.parametrize(
    "said",
    [
        "[a/pair.cc:1] Read error [127.0.0.1]:1: Connection reset by peer",
        "[a/pair.cc:1] Read error [127.0.0.1]:1: Connection timed out",  # of the kernel, after a quarter of an hour
        "[a/b.cc:81] Timed out waiting 5000ms for recv operation to complete",
        "[a/pair.cc:2] Application timeout caused pair closure",
    ],
)
def test_what_gloo_says_becomes_a_line_that_names_them(said):
    def waits(lost) -> None:
        with nodes.all_ranks(lost):
            raise RuntimeError(said)

    words = said.partition("] ")[2]
    line = refused(waits, lambda: ["rank 3 on machine 1"])
    assert line.startswith(f"rank 0: rank 3 on machine 1 is gone or hangs ({words}); the same command continues")
    assert refused(waits, list).startswith("rank 0: another rank is gone or hangs (")
    with pytest.raises(RuntimeError, match="of my own"), nodes.all_ranks(list):
        raise RuntimeError("of my own")
