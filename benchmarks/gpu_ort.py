"""fcn-deploy through ONNX Runtime, on the execution provider that is named."""

from __future__ import annotations

from functools import partial

from gpu_job import BATCH, Job, Loaded

from fcn_deploy.backends.ort import open_ort
from fcn_deploy.backends.ort_options import GpuSettings
from fcn_deploy.recipe import Shapes
from fcn_deploy.segment import Segmenter


def open_session(job: Job, *, provider: str, half: bool) -> Loaded:
    """Labels of a batch, or `Segmenter.segment` of an image.

    Args:
        job: What to do.
        provider: ``cpu``, ``cuda``, ``tensorrt`` or ``rtx``.
        half: Run the FP16 file.
    """
    count, height, width = job.crops
    hw = (height, width)
    settings = GpuSettings(
        batch=BATCH if job.is_image else count,
        shapes=Shapes(hw, hw, hw, count),
        cache=job.work / "engines-of-onnxruntime",
    )
    backend = open_ort(job.files.half if half else job.files.onnx, provider, settings)
    if not job.is_image:
        return Loaded(backend.labels, backend.close)
    segment = partial(Segmenter(backend).segment, tile=hw, overlap=job.overlap)
    return Loaded(segment, backend.close)
