"""Questions that may end the process that asks them, asked in a process of their own.

CUDA, TensorRT and ONNX Runtime are native: a release that does not fit its driver segfaults.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fcn_deploy.doctor.probe import MARK

TIMEOUT_S = 60.0
"""PyTorch from a cold disk takes half a minute; what takes longer hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a question.

    Attributes:
        facts: The answer; empty if there is none.
        failure: Why there is no answer, in one line; empty if there is one.
        said: What the libraries wrote to the terminal, which is often the only trace of a cause.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    said: str = ""


Ask = Callable[..., Outcome]
"""Takes a question of :mod:`~fcn_deploy.doctor.probe` and its arguments."""


def ask(
    question: str, *arguments: str, path: Sequence[str], timeout_s: float = TIMEOUT_S
) -> Outcome:
    """Ask in a new process; a crash, a hang and an exception are outcomes, too.

    Args:
        question: A key of ``probe.QUESTIONS``.
        arguments: What it takes.
        path: ``sys.path`` of that process. Not the current folder, unless it is named: a file
            ``random.py`` that lies there would otherwise be imported.
        timeout_s: When it is given up.
    """
    code = (
        f"import sys; sys.path[:] = {list(path)!r}; "
        f"from fcn_deploy.doctor.probe import answer; answer({question!r}, {list(arguments)!r})"
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return Outcome(failure=f"no answer within {timeout_s:g} seconds")
    except OSError as error:
        return Outcome(failure=f"no process could be started: {error.strerror or error}")
    before, _, answered = ended.stdout.rpartition(MARK)
    said = before + ended.stderr
    if ended.returncode:
        return Outcome(failure=_end(ended.returncode, ended.stderr), said=said)
    try:
        facts = json.loads(answered)
    except ValueError:
        return Outcome(failure="the process ended without an answer", said=said)
    return Outcome(facts, facts.pop("error", ""), said)


def _end(code: int, errors: str) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"it crashes the process ({name})"
    last = errors.strip().splitlines()[-1:]
    return f"the process ended with code {code}" + "".join(f": {line}" for line in last)
