"""From the files of a run to a reference and the rungs that are compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.artifacts import BEST, is_part, newest_run, sha256
from fcn_deploy.backends import Backend, open_backend
from fcn_deploy.errors import DeviceError, MissingExtraError, ModelError, UsageError
from fcn_deploy.onnx_file import identity, read_onnx
from fcn_deploy.verify.ladder import Candidate
from fcn_deploy.verify.weights import WeightFigures, compare_weights

_ORDER = (".onnx", ".plan")


@dataclass(frozen=True)
class Ladder:
    """What is compared with what.

    Attributes:
        reference: Loaded.
        against: Its file.
        candidates: From the bottom up.
    """

    reference: Backend
    against: Path
    candidates: tuple[Candidate, ...]


def artifacts_of(run: Path | None) -> tuple[Path, ...]:
    """The ONNX files and plans of a run folder, the plain ones first.

    Raises:
        ModelError: There are none.
        UsageError: There is no run at all.
    """
    folder = newest_run() if run is None else run
    found = [
        path
        for suffix in _ORDER
        for path in sorted(folder.glob(f"*{suffix}"), key=lambda path: (len(path.name), path.name))
        if not is_part(path) and not path.name.startswith(".")
    ]
    if not found:
        raise ModelError(f"{folder} holds no ONNX file and no plan.", "Make one: fcn-deploy export")
    return tuple(found)


def reference_for(artifacts: Sequence[Path], named: Path | None) -> Path:
    """What is believed: the file that was named, or the checkpoint beside the artifacts.

    Raises:
        ModelError: There is no such file.
        UsageError: There is no checkpoint beside them.
    """
    if named is not None:
        path = named / BEST if named.is_dir() else named
        if not path.is_file():
            raise ModelError(f"There is no {path}.", "Name a checkpoint: --against FILE")
        return path
    beside = artifacts[0].with_name(BEST)
    if not beside.is_file():
        raise UsageError(
            f"There is no {BEST} beside {artifacts[0]} to compare it with.",
            "Name it: --against CHECKPOINT; or without PyTorch the ONNX file that you trust.",
        )
    return beside


def open_ladder(
    artifacts: Sequence[Path],
    against: Path,
    stack: ExitStack,
    *,
    explicit: bool,
    provider: str = "auto",
    half: bool | None = None,
    cache: Path | None = None,
) -> Ladder:
    """Load all of it.

    Args:
        artifacts: ONNX files and plans.
        against: A checkpoint, or an ONNX file.
        stack: Closes what is loaded.
        explicit: Whether somebody named the artifacts: then all of them must run here.
        provider: For artifacts; the reference computes on the CPU, whose float32 is float32.
        half: Whether eager half precision is a rung; ``None``: if an artifact is FP16.
        cache: Folder of the user's own for what is compiled for this machine.

    Raises:
        ModelError: A file is not usable, or of other classes than the reference.
        EnvironmentFault: A package or device is missing.
    """
    reference = stack.enter_context(open_backend(against, "auto", "cpu"))
    eager = against.suffix == ".safetensors"
    wanted = _weights(against) if eager else None
    rungs = [
        _candidate(path, reference, wanted, stack, explicit, provider, cache)
        for path in artifacts
        if path.resolve() != against.resolve()
    ]
    needs_half = any("fp16" in (rung.precision or "") for rung in rungs)
    if eager and (needs_half if half is None else half):
        rungs.insert(0, _half(against, stack))
    if not rungs:
        raise UsageError(f"{against} is not compared with itself.", "Name another artifact.")
    return Ladder(reference, against, tuple(rungs))


def _weights(checkpoint: Path) -> dict[str, NDArray[np.float32]]:
    from fcn_deploy.verify.bisect import open_reference

    return open_reference(checkpoint).weights()


def _half(checkpoint: Path, stack: ExitStack) -> Candidate:
    from fcn_deploy.backends.eager import open_eager

    backend = stack.enter_context(open_eager(checkpoint, "auto", half=True))
    return Candidate("eager PyTorch fp16", backend, precision="fp16")


def _candidate(
    path: Path,
    reference: Backend,
    wanted: dict[str, NDArray[np.float32]] | None,
    stack: ExitStack,
    explicit: bool,
    provider: str,
    cache: Path | None,
) -> Candidate:
    digest, weights, precision = sha256(path), None, None
    if path.suffix == ".onnx":
        digest = identity(path)
        weights, precision = _of_onnx(path, reference, wanted)
    elif ".fp16" in path.name:
        precision = "fp16"
    name = {".onnx": "ONNX Runtime", ".plan": "TensorRT"}.get(path.suffix, "eager PyTorch")
    try:
        backend = stack.enter_context(open_backend(path, "auto", provider, cache=cache))
    except (DeviceError, MissingExtraError) as error:
        if explicit:
            raise
        return Candidate(
            f"{name} {precision or ''}".strip(),
            None,
            path,
            digest,
            error.problem,
            weights,
            precision,
        )
    if backend.spec.classes != reference.spec.classes:
        raise ModelError(
            f"{path.name} has other classes than the reference.", "Name its own: --against FILE"
        )
    return Candidate(
        f"{name} {backend.precision}", backend, path, digest, "", weights, backend.precision
    )


def _of_onnx(
    path: Path, reference: Backend, wanted: dict[str, NDArray[np.float32]] | None
) -> tuple[WeightFigures | None, str]:
    model = read_onnx(path)
    if wanted is None:
        return None, model.precision
    figures = compare_weights(model.proto, wanted, reference.spec)
    return (figures if figures.compared else None), model.precision
