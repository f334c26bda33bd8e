"""A contender that was loaded, or not."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from fcn_deploy.backends import Backend
from fcn_deploy.benchmark.contenders import Contender
from fcn_deploy.benchmark.result import Row
from fcn_deploy.benchmark.settings import Settings
from fcn_deploy.errors import FcnDeployError


@dataclass(frozen=True)
class Entry:
    """What came of loading one.

    Attributes:
        contender: The file, and what is to run it.
        row: What is known of it, without a name.
        backend: What runs it; ``None`` where it cannot be loaded.
        error: Why it cannot be.
    """

    contender: Contender
    row: Row
    backend: Backend | None
    error: FcnDeployError | None


def open_entry(contender: Contender, settings: Settings, cache: Path | None) -> Entry:
    """Load a contender.

    Raises:
        FcnDeployError: The user named it, and it cannot be loaded.
    """
    path = contender.path
    row = Row("", str(path), contender.kind, size_bytes=path.stat().st_size)
    start = time.perf_counter()
    try:
        backend = contender.open(settings.provider, trust_engine=settings.trust_engine, cache=cache)
    except FcnDeployError as error:
        if contender.named:
            raise
        return Entry(contender, replace(row, unavailable=error.problem), None, error)
    known = replace(
        row,
        provider=backend.provider,
        precision=backend.precision,
        loading_s=round(time.perf_counter() - start, 3),
    )
    return Entry(contender, known, backend, None)
