"""Eager PyTorch: the reference that everything else is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import CROPS_AT_ONCE, Footprint
from fcn_deploy.backends import ShapeLimits, check_finite
from fcn_deploy.errors import DeviceError, MissingExtraError
from fcn_deploy.receptive import halo_for
from fcn_deploy.spec import ModelSpec
from fcn_deploy.upsample import Upsampling, window_matrix

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "train") from error

from fcn_deploy.training.checkpoint import load_network
from fcn_deploy.training.folding import folded
from fcn_deploy.training.network import BYTES_PER_PIXEL, FCN, Deployed, HalfDeployed
from fcn_deploy.training.reach import reach_of_network


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or else the CPU.

    Raises:
        DeviceError: There is no such device, or PyTorch cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # the device `meta` has no values to give back
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"PyTorch cannot use the device {name!r}: {str(error).splitlines()[0]}",
            "Pass cpu, or auto for the best that works.",
        ) from error
    return device


class EagerBackend:
    """A network in PyTorch, in the precision of its weights; see the Backend protocol."""

    name = "eager"
    labels_on_device = True  # the reference decides by its own layers

    def __init__(
        self, network: FCN, spec: ModelSpec, device: torch.device, *, half: bool = False
    ) -> None:
        self.spec = spec
        self.provider = str(device)
        self.precision = "fp16" if half else "fp32"
        self.limits = ShapeLimits(step=spec.output_stride)
        # As of the exported graph, so that both cut images alike. PyTorch computes one crop at a
        # time, in about the memory of two.
        self.footprint = Footprint(BYTES_PER_PIXEL[spec.backbone], CROPS_AT_ONCE)
        self._device = device
        # Half precision is of a copy: the arithmetic that FP16 files and engines are meant to have.
        model = HalfDeployed(folded(network).half(), spec) if half else Deployed(network, spec)
        self._model = model.to(device)

    @property
    def upsampling(self) -> Upsampling:
        """The last transposed convolution, as its weights are now: they may be in training."""
        layer = self._model.network.upsample
        kernel = layer.weight.detach().float().cpu().numpy()
        bias = np.zeros(kernel.shape[1], np.float32)
        if layer.bias is not None:
            bias = layer.bias.detach().float().cpu().numpy()
        return Upsampling(window_matrix(kernel, bias), self.spec.num_classes)

    @property
    def halo(self) -> int:
        """Pixels of a crop's border that what lies beyond it would change."""
        reach = reach_of_network(self._model.network, self.spec)
        return halo_for(reach, self.spec.score_stride, self.limits.step)

    def _run(self, crops: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.limits.check(crops.shape)
        # A training that is validated through this backend goes on in training mode afterwards.
        training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                image = torch.from_numpy(np.ascontiguousarray(crops)).to(self._device)
                labels, logits, scores = self._model(image)
        except RuntimeError as error:  # out of memory, on CPUs as on GPUs
            raise DeviceError(
                f"PyTorch failed on crops of {'x'.join(str(size) for size in crops.shape)}: "
                f"{str(error).splitlines()[0]}",
                "If memory is short, pass a smaller --tile.",
            ) from error
        finally:
            self._model.train(training)
        check_finite(scores.cpu().numpy(), "PyTorch")
        return labels, logits, scores

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Most likely class per pixel: uint8 (N, H, W)."""
        return np.asarray(self._run(crops)[0].cpu().numpy(), np.uint8)

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel: float32 (N, C, H, W)."""
        return np.asarray(self._run(crops)[1].cpu().numpy(), np.float32)

    def labels_and_logits(
        self, crops: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Both, of one run."""
        labels, logits, _ = self._run(crops)
        return np.asarray(labels.cpu().numpy(), np.uint8), np.asarray(logits.cpu().numpy())

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What enters the last transposed convolution: float32 (N, C, H/s, W/s)."""
        return np.asarray(self._run(crops)[2].cpu().numpy(), np.float32)

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Scores (C, H/s, W/s) of each crop (H, W, 3), in order."""
        for crop in crops:
            yield self.scores(crop[None])[0]

    def close(self) -> None:
        """Nothing to do: the tensors go with the object."""

    def __enter__(self) -> EagerBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_eager(path: Path, provider: str = "auto", *, half: bool = False) -> EagerBackend:
    """Load a checkpoint; ``provider`` is a PyTorch device.

    Args:
        path: Of the checkpoint.
        provider: ``cpu``, ``cuda``, ..., or ``auto``.
        half: Compute in half precision after normalisation, batch norm folded in float32.

    Raises:
        ModelError: Not a usable checkpoint.
        DeviceError: There is no such device.
    """
    network, spec = load_network(path)
    return EagerBackend(network, spec, pick_device(provider), half=half)
