"""How long a GPU really works during a run, whoever sends the work."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any


def start_profiler() -> None:
    """Let PyTorch's profiler take hold of the GPU; whatever is recorded later it sees."""
    if (torch := _torch()) is not None:
        _profiled(torch, torch.cuda.synchronize)


def busy_seconds(work: Callable[[], object], runs: int) -> float | None:
    """Seconds of one run in which some kernel or copy is under way, as CUPTI saw them.

    To be called in a process in which no time is taken afterwards: the profiler leaves traces.

    Args:
        work: One run, waited for.
        runs: How many to average over.

    Returns:
        ``None`` where PyTorch's profiler is not there, or sees nothing.
    """
    if (torch := _torch()) is None:
        return None

    def all_runs() -> None:
        for _ in range(runs):
            work()
        torch.cuda.synchronize()

    spans = [
        (float(event.time_range.start), float(event.time_range.end))
        for event in _profiled(torch, all_runs)
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]
    return covered(spans) / 1e6 / runs or None


def _torch() -> Any:
    """PyTorch, if it finds a GPU; else ``None``."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _profiled(torch: Any, work: Callable[[], object]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            work()
    return trace.events() or []


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans: streams overlap, and are not counted twice."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total
