"""What ``benchmark`` and ``verify`` leave behind, with figures made up and hostile names."""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any

from PIL import Image
from typer.testing import CliRunner, Result

from fcn_deploy.cli.app import app

HOSTILE = '<script>alert("x")</script>'
HOSTILE_CLASS = f"$disc$ {HOSTILE}"
MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "memory_mib": 7940,
    "platform": "Linux",
    "gpus": [{"name": f"A card {HOSTILE}", "driver": "1.2", "memory_mib": 8192}],
    "power": None,
}
HOSTILE_IMAGE = "scene<img src=x onerror=alert(1)>"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def benchmark_record() -> dict[str, Any]:
    """Two models that ran, on two batches, and one that could not."""
    first = _row("eager PyTorch", "eager", [_result(1, 142.1, 1.0), _result(4, 520.0, 1.0)])
    second = _row("ONNX Runtime fp16", "ort", [_result(1, 92.0, 0.65)])
    second["refused"] = [{"batch": 4, "height": 320, "width": 480, "reason": "Too many at once."}]
    second["end_to_end"] = None
    absent = _row("TensorRT fp16", "trt", []) | {
        "unavailable": "There is no NVIDIA GPU on this machine.",
        **dict.fromkeys(("mean_iou", "accuracy", "peak_memory_mib", "loading_s", "provider")),
        "end_to_end": None,
    }
    return {
        "format": 1,
        "made": "2026-11-22T03:25:00Z",
        "machine": MACHINE,
        "versions": {"fcn-deploy": "0.1.0", "numpy": "2.3.1"},
        "settings": {
            "rounds": 20,
            "warmup": 3,
            "reference": "eager PyTorch",
            "data": None,
            "split": None,
            "images": None,
        },
        "notes": [f"A remark {HOSTILE}"],
        "rows": [first, second, absent],
    }


def _row(name: str, backend: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    stages = {"decode_ms": 6.1, "network_ms": 140.0, "merge_ms": 4.1, "encode_ms": 2.9}
    return {
        "name": name,
        "file": "runs/x/model",
        "backend": backend,
        "provider": "CPU",
        "precision": "fp32",
        "size_bytes": 45123456,
        "mean_iou": 0.5631,
        "accuracy": 0.8912,
        "peak_memory_mib": 612.4,
        "gpu_memory_mib": None,
        "power_w": None,
        "unavailable": None,
        "loading_s": 0.41,
        "results": results,
        "refused": [],
        "end_to_end": {
            **{key: {"p50": value} for key, value in stages.items()},
            "total_ms": {"p50": 153.1},
            "images_s": 6.43,
            "pipelined_images_s": 6.78,
        },
    }


def _result(batch: int, median: float, ratio: float) -> dict[str, Any]:
    return {
        "batch": batch,
        "height": 320,
        "width": 480,
        "min_ms": 0.9 * median,
        "p50_ms": median,
        "p90_ms": 1.05 * median,
        "p99_ms": 1.1 * median,
        "throughput_images_s": 1000 * batch / median,
        "megapixels_s": 153.6 * batch / median,
        "ratio": ratio,
        "ratio_low": ratio - 0.04,
        "ratio_high": ratio + 0.05,
    }


def verification_record() -> dict[str, Any]:
    """A rung that passed, one that failed, one with labels alone, and one that could not run."""
    failed = _rung("ONNX Runtime fp16", passed=False, error=0.02) | {
        "problems": [f"Labels are equal on 71 % only {HOSTILE}."],
        "diagnosis": "It looks as if red and blue were swapped.",
        "layers": [{"name": "body.0", "local_error": 1e-7, "error": 2e-7}],
        "pictures": [{"caption": f"scene {HOSTILE}", "image": _png()}],
        "worst_pixel": {
            "name": "scene",
            "row": 12,
            "column": 99,
            "reference": "sky",
            "candidate": "road",
            "margin": 0.0004,
        },
    }
    labels_alone = _rung("TensorRT fp16", passed=True, error=None)
    absent = _rung("TensorRT int8", passed=None, error=None) | {
        "crops": None,
        "images": None,
        "notes": ["There is no NVIDIA GPU on this machine."],
    }
    return {
        "format": 1,
        "passed": False,
        "date": "2026-11-22",
        "reference": {
            "file": "best.safetensors",
            "sha256": "ab12",
            "name": "eager fp32",
            "provider": "CPU",
        },
        "data": {"images": 3, "labelled": True, "root": "data", "split": "val"},
        "limits": {"min_agreement": 0.999, "max_miou_drop": None},
        "machine": MACHINE,
        "versions": {"fcn-deploy": "0.1.0"},
        "rungs": [
            _rung("ONNX Runtime fp32", passed=True, error=1e-5),
            failed,
            labels_alone,
            absent,
        ],
    }


def _rung(name: str, *, passed: bool | None, error: float | None) -> dict[str, Any]:
    def part(factor: float) -> float | None:
        return None if error is None else factor * error

    margins = (
        {"from": 0.0, "to": 0.001, "pixels": 120, "agreement": 0.71},
        {"from": 0.001, "to": 0.1, "pixels": 0, "agreement": None},
        {"from": 0.1, "to": None, "pixels": 900, "agreement": 1.0},
    )
    return {
        "name": name,
        "file": "model.onnx",
        "sha256": "cd34",
        "backend": "ort",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "passed": passed,
        "problems": [],
        "notes": [],
        "diagnosis": None,
        "weights": None,
        "crops": {
            "count": 126,
            "pixels": 1020,
            "logit_range": 30.0,
            "max_error": part(1),
            "p999_error": part(0.2),
            "rms_error": part(0.05),
            "agreement": 0.99991,
            "flips_outside_margin": 0,
            "by_margin": list(margins),
            "by_shape": [{"height": 64, "width": 96}, {"height": 64, "width": 96}],
        },
        "images": {
            "count": 3,
            "pixels": 20000,
            "agreement": 0.999999999,
            "worst": {"name": "scene", "agreement": 0.9991},
            "mean_iou": 0.5631,
            "mean_iou_change": -0.0001,
        },
        "worst_pixel": None,
        "layers": [],
        "pictures": [],
    }


def _png() -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((96, 20)).save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()
