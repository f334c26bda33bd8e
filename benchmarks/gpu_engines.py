"""fcn-deploy through TensorRT and TensorRT-RTX: host to host, and the engine alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpu_alone import EngineAlone
from gpu_job import Job, Loaded

from fcn_deploy.artifacts import sha256
from fcn_deploy.backends.cuda import Cuda
from fcn_deploy.backends.tensorrt_flavour import (
    Flavour,
    device_capability,
    import_flavour,
    require_gpu,
)
from fcn_deploy.backends.trt import TrtBackend
from fcn_deploy.backends.trt_engine import Engine
from fcn_deploy.backends.trt_fit import require_fitting
from fcn_deploy.engine import build_engine
from fcn_deploy.engine_files import read_engine
from fcn_deploy.errors import ModelError
from fcn_deploy.passport import WHOLE, Passport
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.segment import Segmenter


def plan_path(job: Job, flavour: str) -> Path:
    """Where the engine for the crops of a job lies, or will lie."""
    shape = "x".join(map(str, job.crops))
    return job.work / f"{job.files.onnx.stem}-{shape}.{flavour}.fp16.plan"


def _options(job: Job, flavour: str) -> EngineOptions:
    count, height, width = job.crops
    hw = (height, width)
    return EngineOptions(fp16=True, flavour=flavour, profiles=(Shapes(hw, hw, hw, count),))


@dataclass(frozen=True)
class _Plan:
    """An engine's files, and what runs them."""

    path: Path
    passport: Passport
    contents: Mapping[str, bytes]
    flavour: Flavour
    cuda: Cuda


def _plan_for(job: Job, name: str) -> _Plan:
    """The engine of this network, release and GPU; built unless it is there."""
    cuda = Cuda(require_gpu())  # before minutes of building
    flavour, path = import_flavour(name), plan_path(job, name)
    try:
        return _current(path, job, flavour, cuda)
    except ModelError:
        build_engine(job.files.onnx, path, _options(job, name), crops=None, cache=job.work)
        return _current(path, job, flavour, cuda)


def _current(path: Path, job: Job, flavour: Flavour, cuda: Cuda) -> _Plan:
    passport, contents = read_engine(path)
    if passport.source_sha256 != sha256(job.files.onnx):
        raise ModelError(f"{path} was built from another file than {job.files.onnx}.")
    require_fitting(path, passport, flavour.version, device_capability(cuda.api))
    return _Plan(path, passport, contents, flavour, cuda)


def open_engine(job: Job, *, flavour: str, graphs: bool = True) -> Loaded:
    """Labels of a batch, or `Segmenter.segment` of an image.

    Args:
        job: What to do.
        flavour: ``tensorrt`` or ``rtx``.
        graphs: Launch recorded runs; RTX always does.
    """
    plan = _plan_for(job, flavour)
    backend = TrtBackend(
        plan.path, plan.passport, plan.contents, plan.flavour, plan.cuda, graphs=graphs
    )
    if not job.is_image:
        return Loaded(backend.labels, backend.close)
    tile = (job.tile, job.tile)
    segment = partial(Segmenter(backend).segment, tile=tile, overlap=job.overlap)
    return Loaded(segment, backend.close)


def open_alone(job: Job, *, flavour: str, graphs: bool = True) -> Loaded:
    """The whole engine from device to device; copies are made, but not timed."""
    plan = _plan_for(job, flavour)
    whole, portable = plan.contents[WHOLE], plan.passport.options.version_compatible
    engine = Engine(plan.flavour, plan.cuda, whole, plan.path.name, version_compatible=portable)
    try:
        alone = EngineAlone(engine, job.crops, graphs=graphs)
    except BaseException:
        engine.close()
        raise

    def close() -> None:
        alone.close()
        engine.close()

    return Loaded(alone.labels, close, clock=lambda: alone.seconds)
