"""From labelled images to a verified FP16 TensorRT engine, and to full-image masks of any size.

import fcn_deploy

model = fcn_deploy.load("model.onnx", backend="ort")
labels = model.segment(image, tile=(512, 512), overlap=64)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.spec import IGNORE, ModelSpec

if TYPE_CHECKING:
    from fcn_deploy.loading import load
    from fcn_deploy.segment import Prediction, Segmenter
    from fcn_deploy.training.to_onnx import export_module as export

__version__ = "0.1.0"
__all__ = [
    "IGNORE",
    "FcnDeployError",
    "ModelSpec",
    "Prediction",
    "Segmenter",
    "__version__",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    # Lazy: `fcn-deploy --help` and tools that only read the version should not wait for NumPy.
    if name in ("Prediction", "Segmenter"):
        from fcn_deploy import segment

        return getattr(segment, name)
    if name == "load":
        from fcn_deploy import loading

        return loading.load
    if name == "export":
        from fcn_deploy.training import to_onnx

        return to_onnx.export_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
