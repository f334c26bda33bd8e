"""Training and export: the home of torch."""

from fcn_deploy.errors import MissingExtraError

try:
    import safetensors
    import torch
    import torchvision
except ImportError as error:
    raise MissingExtraError(str(error.name or "torch"), "train") from error

__all__ = ["safetensors", "torch", "torchvision"]
