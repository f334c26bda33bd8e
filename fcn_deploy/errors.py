"""Every error that a user can mend.

Anything else that escapes the package is a bug and keeps its traceback::

    FcnDeployError            4  refused before work: model, data set, configuration
    |-- ModelError            4  the model file, or what it holds, is not usable
    |   `-- EngineError       4  an engine that building it again would mend
    |-- DataError             4  the data set is not usable
    |-- UsageError            2  the arguments contradict each other or the model
    |   `-- ShapeError        2  a shape the model or its optimization profile does not take
    |-- InputError            3  one input of many is not usable; the others go on
    |-- EnvironmentFault      5  disk, permission, device, driver
    |   |-- MissingExtraError 5  a package is not installed; names the pip command
    |   `-- DeviceError       5  no such device, or it does not work
    |       `-- DeviceMemoryError  5  too little memory for this much at once
    `-- CheckFailedError      6  parity, non-finite output, threshold
"""

from __future__ import annotations

from typing import Any, ClassVar


class FcnDeployError(Exception):
    """Something that the user can mend: what happened, then what to do about it.

    Args:
        problem: What happened, to which file; one line.
        remedy: What to do; one line, or nothing where the problem says it all.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.problem, self.remedy)


def _again(kind: type[FcnDeployError], problem: str, remedy: str) -> FcnDeployError:
    """An error from another process; children's constructors ask for other arguments."""
    error = kind.__new__(kind)
    FcnDeployError.__init__(error, problem, remedy)
    return error


class ModelError(FcnDeployError):
    """A model file is damaged, foreign, unsafe or not what the command needs."""


class EngineError(ModelError):
    """A plan is stale, damaged, of another GPU or release: building it again mends that."""


class DataError(FcnDeployError):
    """A data set is missing, incomplete or contradicts itself."""


class UsageError(FcnDeployError):
    """Arguments that contradict each other, or that the model cannot take."""

    exit_code = 2


class ShapeError(UsageError):
    """A batch, height or width outside what the model or its profile takes."""


class InputError(FcnDeployError):
    """One input of many cannot be read; the run goes on without it."""

    exit_code = 3


class EnvironmentFault(FcnDeployError):  # noqa: N818 - `EnvironmentError` is a builtin
    """The machine, not the request, is at fault."""

    exit_code = 5


class MissingExtraError(EnvironmentFault):
    """A package that this work needs is not installed.

    Args:
        package: The distribution that is missing.
        extra: The extra of fcn-deploy that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed, and this needs it.",
            f'Run: pip install "fcn-deploy[{extra}]"',
        )


class DeviceError(EnvironmentFault):
    """A device or execution provider is missing or does not work."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory for as much as was asked of it at once."""


class CheckFailedError(FcnDeployError):
    """A comparison or a sanity check failed: the artifact is not to be trusted."""

    exit_code = 6
