"""Networks and pixels to measure on: found, or made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gpu_job import Files, Job
from scenes import draw_scene, saved_scene

from fcn_deploy.artifacts import write_atomically
from fcn_deploy.onnx_file import read_onnx, to_half


def files_of(network: str, work: Path, prepared: Path | None = None) -> Files:
    """The files of a network; those that are neither here nor there are made in ``work``.

    Args:
        network: Head and backbone, such as ``fcn32s:resnet18``.
        work: Folder for what is made.
        prepared: Folder of an earlier run with ``--prepare-only``; a checkpoint alone is enough.

    Raises:
        ImportError: Networks cannot be made here: PyTorch or ONNX Runtime is missing.
    """
    head, backbone = network.split(":")
    stem = f"{head}-{backbone}-learned"  # as benchmarks/networks.py names them
    checkpoint, onnx = (
        _found(f"{stem}{suffix}", prepared, work) for suffix in (".safetensors", ".onnx")
    )
    if checkpoint is None:
        from networks import make_network  # torch and onnxruntime, which may be missing

        checkpoint, onnx, _ = make_network(work, head, backbone)
    if onnx is None:
        from fcn_deploy.training.to_onnx import export_onnx

        onnx = work / f"{stem}.onnx"
        export_onnx(checkpoint, onnx, crops=None)
    half = work / f"{stem}.fp16.onnx"
    twin = to_half(read_onnx(onnx).proto).SerializeToString()
    if not half.exists() or half.read_bytes() != twin:
        write_atomically(half, twin)
    return Files(checkpoint, onnx, half)


def _found(name: str, *folders: Path | None) -> Path | None:
    for folder in folders:
        if folder is not None and (path := folder / name).is_file():
            return path
    return None


def batch_job(files: Files, shape: tuple[int, ...], device: str, work: Path) -> Job:
    """A batch of drawn crops; ``shape`` is (N, H, W)."""
    count, height, width = shape
    path = work / f"crops-{count}x{height}x{width}.npy"
    if not path.exists():
        scenes = [draw_scene((height, width), seed)[0] for seed in range(count)]
        np.save(path, np.stack(scenes))
    return Job(files, path, shape, device, work)


def image_job(
    files: Files, side: int, device: str, work: Path, *, tile: int = 512, overlap: int = 64
) -> Job:
    """A square drawn image, to be cut into crops of ``tile`` pixels; all sizes in pixels."""
    path = saved_scene(work, (side, side))
    return Job(files, path, (side, side), device, work, tile, overlap)
