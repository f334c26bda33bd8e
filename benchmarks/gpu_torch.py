"""PyTorch as its users run it, and MONAI on top of it: the peers on the same GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from gpu_job import BATCH, Job, Loaded, Pixels
from torch import Tensor, nn

from fcn_deploy.backends.eager import EagerBackend
from fcn_deploy.segment import Segmenter
from fcn_deploy.training.checkpoint import load_network
from fcn_deploy.training.folding import fold_batch_norm
from fcn_deploy.training.network import Deployed


def cuda_works() -> bool:
    """Whether PyTorch finds a GPU."""
    return torch.cuda.is_available()


def set_arithmetic(*, tf32: bool, search: bool) -> None:
    """Whether float32 may be rounded to TF32, and cuDNN searches for its fastest algorithm.

    Both hold for the whole process: to be called before each run, as contenders take turns.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = search


class LabelNetwork(nn.Module):
    """The deployed network with labels as its only output.

    Args:
        deployed: As it comes from the checkpoint.
        half: Compute in FP16 and channels last, batch norm folded in float32 before, as an export
            does it; normalisation stays float32.
    """

    def __init__(self, deployed: Deployed, *, half: bool) -> None:
        super().__init__()
        self.deployed = deployed.eval()
        self._half = half
        if half:
            fold_batch_norm(deployed.network)
            deployed.network.half().to(memory_format=torch.channels_last)

    def logits(self, normalised: Tensor) -> Tensor:
        """Logits (N, C, H, W), in the type it computes in, of float32 (N, 3, H, W)."""
        network = self.deployed.network
        if self._half:
            normalised = normalised.half().contiguous(memory_format=torch.channels_last)
        return network.upsample(network.scores(normalised))  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        """Labels uint8 (N, H, W) of RGB uint8 (N, H, W, 3)."""
        return self.logits(self.deployed.normalise(image)).argmax(1).to(torch.uint8)


def _network(job: Job, *, half: bool) -> tuple[LabelNetwork, torch.device]:
    device = torch.device(job.device)
    if device.type == "cuda" and not cuda_works():
        raise RuntimeError("PyTorch finds no CUDA device")
    network, spec = load_network(job.files.checkpoint)
    return LabelNetwork(Deployed(network, spec), half=half).to(device), device


def open_network(
    job: Job, *, half: bool = False, tf32: bool = False, compiled: bool = False
) -> Loaded:
    """Labels of a batch, or of an image in one piece."""
    network, device = _network(job, half=half)
    run: Callable[[Tensor], Tensor] = network
    if compiled:
        run = torch.compile(network, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def labels(pixels: Pixels) -> Pixels:
        set_arithmetic(tf32=tf32, search=True)
        batch = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[None])
        with torch.no_grad():
            found: Pixels = run(batch.to(device)).cpu().numpy()
        return found if pixels.ndim == 4 else found[0]

    # The network goes with the last reference to this function.
    return Loaded(labels, _forget_compiled if compiled else lambda: None)


def _forget_compiled() -> None:
    torch.compiler.reset()


def open_monai(job: Job, *, half: bool = True) -> Loaded:
    """MONAI's `sliding_window_inference` with image, crops and sums on the GPU."""
    infer = importlib.import_module("monai.inferers").sliding_window_inference
    network, device = _network(job, half=half)
    deployed = network.deployed

    def predict(planes: Tensor) -> Tensor:
        normalised = (planes - deployed.mean255) * deployed.inverse_std255
        return network.logits(normalised).float()

    segment = partial(
        infer,
        roi_size=(job.tile, job.tile),
        sw_batch_size=BATCH,
        predictor=predict,
        overlap=job.overlap / job.tile,
        mode="constant",
    )

    def labels(image: Pixels) -> Pixels:
        set_arithmetic(tf32=False, search=True)
        with torch.no_grad():
            # Float, because the type of the image is the one that it adds logits up in.
            planes = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
            found: Pixels = segment(planes).argmax(1)[0].to(torch.uint8).cpu().numpy()
        return found

    return Loaded(labels, lambda: None)


def open_eager_tiles(job: Job) -> Loaded:
    """`Segmenter.segment` through eager PyTorch in float32."""
    network, spec = load_network(job.files.checkpoint)
    backend = EagerBackend(network, spec, torch.device(job.device))
    segmenter = Segmenter(backend)

    def labels(image: Pixels) -> Pixels:
        set_arithmetic(tf32=False, search=True)
        return segmenter.segment(image, tile=(job.tile, job.tile), overlap=job.overlap)

    return Loaded(labels, segmenter.close)
