"""A typed ONNX graph to TensorRT plans and their passport; builds, never runs."""

from fcn_deploy.engine.build import OnProgress, build_engine

__all__ = ["OnProgress", "build_engine"]
