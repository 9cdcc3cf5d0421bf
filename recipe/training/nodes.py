"""What the ranks of a run agree on, whose machines may share nothing: one looks and says, and every rank follows; or each machine
says what it has, and all decide from the same answers.

The same path leads to a folder of its own on each machine. Rank 0's is the run's; `recipe.training.resume` says which machine's
a run is continued from, and the checkpoint is brought to the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from composer.utils import dist

from recipe.errors import UserError, one_line
from recipe.system.files import digest, entries, held, write_whole

Found = TypeVar("Found")
# What gloo and NCCL say where another rank has ended, or has not answered in time.
_LOST = re.compile(
    r"Connection (closed|reset) by peer|Connection timed out|No route to host|Broken pipe|Timed out waiting|"
    r"timeout caused pair closure|remote process exited|NCCL.*timeout"
)
PIECE = 64 << 20  # bytes of a file that travel at a time
_PLACE = re.compile(r"^\[\S*\] ")  # in gloo's source


@contextmanager
def all_ranks(lost: Callable[[], list[str]] = list) -> Iterator[None]:
    """Within it, a rank that is gone or hangs is one line of those that are left; `lost` names it, as far as it can."""
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise UserError(
            f"rank {dist.get_global_rank()}: {' and '.join(lost()) or 'another rank'} is gone or hangs "
            f"({one_line(_PLACE.sub('', str(error)))}); the same command continues from the last checkpoint with autoresume=true"
        ) from None


def decided(look: Callable[[], Found], source: int = 0) -> Found:
    """What `look` finds on the rank `source`, on every rank; a `UserError` there is everybody's."""
    if dist.get_world_size() == 1:
        return look()
    said = _said(look) if dist.get_global_rank() == source else [None, None]
    torch.distributed.broadcast_object_list(said, source)
    if said[1] is not None:
        raise UserError(said[1])
    return said[0]


def of_machines(look: Callable[[], Found]) -> list[Found]:
    """What `look` finds on each machine's first rank, in their order, on every rank; a `UserError` of one is everybody's."""
    if dist.get_world_size() == 1:
        return [look()]
    said = [*_said(look), dist.get_node_rank()] if dist.get_local_rank() == 0 else None
    answers = [answer for answer in dist.all_gather_object(said) if answer]
    for _, error, number in answers:
        if error is not None:
            raise UserError(f"machine {number}: {error}" if number else error)
    return [found for found, *_ in answers]


def _said(look: Callable[[], Any]) -> list[Any]:
    """What it finds, and what it raises, of which one is None."""
    try:
        return [look(), None]
    except UserError as error:
        return [None, str(error)]


@contextmanager
def owned(out: Path, resumes: bool) -> Iterator[None]:
    """Rank 0 has the run's folder to itself until the end; for who comes second it is one line.

    Raises:
        UserError: another command has it, or has begun a run there since this one looked.
    """
    with ExitStack() as stack:

        def take() -> None:
            out.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(held(out)) or (not resumes and entries(out)):
                raise UserError(f"out={out}: another command trains there; wait for its end, or choose another folder")

        decided(take)
        yield


def bring(file: Path, source: int = 0) -> Path:
    """The rank `source`'s `file` to every machine that has not the same under its own path `file`; returns that path."""
    if dist.get_world_size() == 1:
        return file
    size, content = decided(lambda: (file.stat().st_size, digest([file])), source)
    has = file.is_file() and file.stat().st_size == size and digest([file]) == content
    missing = torch.tensor(int(dist.get_local_rank() == 0 and not has), device=_device())
    dist.all_reduce(missing, reduce_operation="MAX")
    if int(missing):
        _send(file, size, source, receives=dist.get_local_rank() == 0 and not has)
    dist.barrier()
    return file


def _send(file: Path, size: int, source: int, receives: bool) -> None:
    """From the rank `source` to all that receive it; the other ranks of their machines take part and keep nothing."""
    if dist.get_global_rank() == source:
        with file.open("rb") as sent:
            _pieces(size, source, sent=sent)
    elif receives:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda draft: _write(draft, size, source))
    else:
        _pieces(size, source)


def _write(draft: Path, size: int, source: int) -> None:
    with draft.open("wb") as target:
        _pieces(size, source, target=target)


def _pieces(size: int, source: int, sent: BinaryIO | None = None, target: BinaryIO | None = None) -> None:
    for start in range(0, size, PIECE):
        count = min(PIECE, size - start)
        piece = torch.frombuffer(bytearray(sent.read(count) if sent else count), dtype=torch.uint8).to(_device())
        torch.distributed.broadcast(piece, src=source)
        if target:
            target.write(piece.cpu().numpy().data)


def _device() -> str:
    """Where the process group's tensors are."""
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
