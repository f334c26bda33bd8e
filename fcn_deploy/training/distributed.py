"""Several processes, each with a device of its own, that train one network: ranks.

Each rank computes its share of every batch, and the same step of the optimizer. What one of them
cannot do, none can: :func:`together` and :func:`from_first` raise the error of one on all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fcn_deploy.errors import DeviceError, EnvironmentFault, FcnDeployError, UsageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """Which of the processes of a training this one is; by default the only one.

    Attributes:
        rank: From 0; rank 0 alone writes files and tells of the progress.
        world: Number of processes.
        local: Which of the processes on this machine, from 0.
        beside: Number of processes on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and tells."""
        return self.rank == 0


ALONE = Ranks()


class RankLostError(EnvironmentFault):
    """Another rank has ended, or cannot be reached: it knows why, this one does not."""


def rank_device_name(wanted: str, ranks: Ranks) -> str:
    """The device of a rank: its own GPU, or the CPU that all of a machine share.

    Args:
        wanted: ``cpu``, ``cuda``, or ``auto``: GPUs if there are any.
        ranks: Which rank.

    Raises:
        UsageError: A single device, of several ranks.
        DeviceError: This machine has fewer GPUs than ranks.
    """
    if ranks.world == 1 or wanted == "cpu":
        return wanted
    if wanted not in ("auto", "cuda"):
        raise UsageError(
            f"{ranks.world} ranks do not train on one device, {wanted}.",
            "Pass --device cuda, for the first GPUs of each machine, or --device cpu.",
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto" and not found:
        return "cpu"
    if found < ranks.beside:
        raise DeviceError(
            f"This machine has {found} GPUs that PyTorch can use, fewer than {ranks.beside}.",
            f"Pass --devices {found}." if found else "Pass --device cpu.",
        )
    return f"cuda:{ranks.local}"


def rank_device(wanted: str, ranks: Ranks) -> torch.device:
    """The device of :func:`rank_device_name`; it raises the same."""
    return torch.device(rank_device_name(wanted, ranks))


def shared_store(host: str, port: int, ranks: Ranks, *, serve: bool, prefix: str) -> Any:
    """Where ranks of several machines leave word for each other.

    Args:
        host: Name or address where they meet.
        port: There.
        ranks: Which rank this is.
        serve: Whether this rank serves it, or somebody else does.
        prefix: Of all keys; another one for each attempt.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, ranks.world, is_master=serve, wait_for_workers=False
    )
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


@contextmanager
def joined(
    ranks: Ranks,
    store: dist.Store,  # type: ignore[name-defined]  # mypy does not see past is_available()
    device: torch.device,
) -> Iterator[None]:
    """Meet the other ranks, and part from them when all is done.

    On CPUs, the cores of a machine are shared evenly among its ranks from here on.

    Args:
        ranks: Which rank this is, of several.
        store: Where they meet; whoever serves it outlives them.
        device: Where this rank computes.

    Raises:
        RankLostError: Another rank ended before this one was done.
    """
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.beside))
    try:
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world)
        yield
    except RuntimeError as error:
        # Gloo has no type of its own for it; its messages begin with the place in its sources.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise RankLostError(
            f"Rank {ranks.rank} of {ranks.world} lost another one, which has ended, or cannot be "
            "reached.",
            "What was saved is kept: --resume goes on after it.",
        ) from error
    # Not after a failure: with a rank gone, NCCL may wait for it. The process ends anyway.
    dist.destroy_process_group()


def total(values: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks, of the same type and shape, on the same device; not differentiable.

    The caller owns the result.
    """
    summed = values.detach().clone()
    if ranks.world > 1:
        dist.all_reduce(summed)
    return summed


def whole(part: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks of something that each is to differentiate by its own part alone.

    For a loss that is no sum of the ranks' losses, such as a ratio of sums: each rank computes it
    from the whole sums, and the gradients, added up over ranks, are those of that loss.
    """
    return part + (total(part, ranks) - part.detach()) if ranks.world > 1 else part


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether it is so on any rank."""
    return bool(total(torch.tensor(int(flag)), ranks))


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Raise on all ranks, at the end of the block, what one of them met in it.

    The block itself must not wait for other ranks. If several fail, the error is that of the first.

    Raises:
        RankLostError: Another rank met a bug, of which it shows the traceback itself.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_rank(failure is not None, ranks):
        _raise_first(failure, ranks)


def from_first(work: Callable[[], Result], ranks: Ranks) -> Result:
    """What ``work`` returns on rank 0; on the others it is not called, and a copy comes.

    Raises:
        Exception: What it raised on rank 0, on all ranks.
    """
    results: list[Result | None] = [None]
    with together(ranks):
        if ranks.first:
            results = [work()]
    if ranks.world > 1:
        dist.broadcast_object_list(results)
    return cast(Result, results[0])


def _raise_first(failure: Exception | None, ranks: Ranks) -> None:
    """Raise the failure of the lowest rank that has one; called by all ranks at once."""
    told: list[Any] = [None] * ranks.world  # of FcnDeployError
    if ranks.world > 1:
        mendable = failure
        if failure is not None and not isinstance(failure, FcnDeployError):
            mendable = RankLostError(f"Another rank failed: {type(failure).__name__}: {failure}")
        dist.all_gather_object(told, mendable)
    first = next((rank for rank, error in enumerate(told) if error is not None), ranks.rank)
    if first != ranks.rank and (error := told[first]) is not None:
        raise error from failure
    assert failure is not None
    raise failure
