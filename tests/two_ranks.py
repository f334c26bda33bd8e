"""Two real ranks, for the tests: processes that meet over gloo and then do what they are told."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from fcn_deploy.training.distributed import Ranks, joined


def _serve(rank: int, store: str, lines: list[Connection]) -> None:
    """Answer questions, of the form (function, arguments), until one is None."""
    ranks = Ranks(rank, len(lines), rank, len(lines))
    line = lines[rank]
    place = dist.FileStore(store, len(lines))  # type: ignore[attr-defined]
    with joined(ranks, place, torch.device("cpu")):
        while (question := line.recv()) is not None:
            function, arguments = question
            try:
                line.send((True, function(ranks, *arguments)))
            except Exception:
                line.send((False, traceback.format_exc()))


class TwoRanks:
    """Calls functions of a module in two ranks at once."""

    def __init__(self, lines: list[Connection]) -> None:
        self._lines = lines

    def run(self, function: Callable[..., Any], *arguments: tuple[Any, Any]) -> list[Any]:
        """What ``function(ranks, ...)`` returns in each rank.

        Args:
            function: At the top of a module; what it takes and returns can be pickled.
            arguments: Of each, one value for rank 0 and one for rank 1.
        """
        for rank, line in enumerate(self._lines):
            line.send((function, [values[rank] for values in arguments]))
        answers = [line.recv() for line in self._lines]
        for good, answer in answers:
            assert good, answer
        return [answer for _, answer in answers]


@contextmanager
def two_ranks(folder: Path) -> Iterator[TwoRanks]:
    """Start two ranks, and end them."""
    pipes = [multiprocessing.get_context("spawn").Pipe() for _ in range(2)]
    theirs: list[Any] = [end for _, end in pipes]
    context = spawn(_serve, (str(folder / "store"), theirs), 2, join=False)  # type: ignore[no-untyped-call]
    ours: list[Any] = [end for end, _ in pipes]
    for end in theirs:
        end.close()
    try:
        yield TwoRanks(ours)
        for line in ours:
            line.send(None)
        context.join(10)
    finally:
        for process in context.processes:
            process.kill()
            process.join()
