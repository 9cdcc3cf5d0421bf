"""Several machines on one computer: network namespaces, joined by veth pairs to a switch in one more of them, the hub.

Every pair begins in one namespace and ends in another, so the computer's own network stays as it is and nothing outlives them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.processes import wait_for

HUB = "10.0.0.1"  # its address, under which what survives all nodes is found
INTERFACE = "eth0"  # a node's
_CLONE_NEWNET = 0x40000000
Made = TypeVar("Made")


class Refused(Exception):
    """There can be no namespaces here; why."""


class Network:
    """A hub, and nodes with addresses of their own: in the order of their names, 10.0.0.2 is the first."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self.addresses = {node: f"10.0.0.{2 + place}" for place, node in enumerate(nodes)}
        self.names = {place: f"recipe-{os.getpid()}-{place}" for place in ("hub", *nodes)}

    def make(self) -> None:
        hub = self.names["hub"]
        for name in self.names.values():
            _make("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _make("-n", hub, "link", "add", "switch", "type", "bridge")
        _ip("-n", hub, "addr", "add", f"{HUB}/24", "dev", "switch")
        _ip("-n", hub, "link", "set", "switch", "up")
        for node, address in self.addresses.items():
            name = self.names[node]
            _make("-n", hub, "link", "add", node, "type", "veth", "peer", "name", INTERFACE, "netns", name)
            _ip("-n", hub, "link", "set", node, "master", "switch", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")

    def remove(self) -> None:
        for place, name in self.names.items():
            if name in there():
                self.kill(place)
                _ip("netns", "del", name)

    def inside(self, place: str) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return "ip", "netns", "exec", self.names[place]

    def in_hub(self, make: Callable[[], Made]) -> Made:
        """What this makes has its sockets and threads in the hub, though it belongs to this process."""
        made: list[Made] = []

        def enter() -> None:
            # of this thread alone, and of those that it starts
            with open(f"/run/netns/{self.names['hub']}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(make())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert made, "see the thread's traceback"
        return made[0]

    def cut(self, node: str) -> None:
        """Its link is gone, at the hub's end, and says so to nobody: connections stay open, and silent."""
        _ip("-n", self.names["hub"], "link", "set", node, "down")

    def processes(self, place: str) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.names[place]).split() if int(pid) != os.getpid()]

    def kill(self, place: str) -> None:
        """SIGKILL for whatever runs there."""
        for pid in self.processes(place):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.processes(place), 30)


@contextmanager
def network(*nodes: str) -> Iterator[Network]:
    """Namespaces for nodes of these names; afterwards there are none, and none of their processes.

    Raises:
        Refused: this computer or this user may have none.
    """
    if not shutil.which("ip"):
        raise Refused("there is no `ip`")
    made = Network(nodes)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def there() -> set[str]:
    """The names of all namespaces of this computer that have one."""
    folder = Path("/run/netns")
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def _make(*words: str) -> None:
    try:
        _ip(*words)
    except subprocess.CalledProcessError as error:
        raise Refused(error.stderr.strip()) from None


def _ip(*words: str) -> str:
    return subprocess.run(("ip", *words), capture_output=True, text=True, check=True, timeout=60).stdout
