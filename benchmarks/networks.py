"""Networks to measure: random, but with scores that mean something; exported both ways.

A random network answers nearly one class everywhere, and its upsampling kernel is the bilinear one
exactly. Both would make our shortcuts look better than they are. So the score layers are fitted to
drawn scenes, and the kernel moves away from the bilinear one as far as kernels do in training.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx.helper
import torch
from plain import Model
from scenes import CLASSES, draw_scene
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from fcn_deploy.spec import INPUT, OUTPUTS, SPEC_KEY, ModelSpec, voc_palette
from fcn_deploy.training.checkpoint import Checkpoint, save_checkpoint
from fcn_deploy.training.folding import fold_batch_norm
from fcn_deploy.training.network import FCN, SCORE_STRIDE, Deployed, build_network
from fcn_deploy.training.to_onnx import export_onnx

Kernel = Literal["bilinear", "learned", "rough"]

LEARNED = (0.002, 0.005)
"""Standard deviation of a kernel from the bilinear one, between classes and within one.

Of `fcn-deploy train --head fcn8s` on CamVid after 2 epochs: 0.0013 and 0.0036; in `make demo`,
after 28: 0.0022 and 0.0054. Both are as smooth as the kernel itself.
"""

ROUGH = (0.05, 0.05)
"""White noise of this deviation leaves no window that could be skipped: the worst case."""

_STEPS = 100
"""After them the best class leads the next one by 3 to 4 at most pixels, as in `make demo`."""

_TRAINING_SCENES = 6
_TRAINING_HW = (1024, 1024)


def make_network(
    folder: Path,
    head: str = "fcn32s",
    backbone: str = "resnet18",
    *,
    kernel: Kernel = "learned",
    fitted: bool = True,
) -> Model:
    """Write a network, unless it is there already.

    Args:
        folder: Where to.
        head: As in :class:`~fcn_deploy.spec.ModelSpec`.
        backbone: The same.
        kernel: ``bilinear``, as it is before training, or with `--freeze-upsampling`; ``learned``;
            ``rough``, so far from it that nothing can be skipped.
        fitted: Whether the answers have to mean something; memory does not depend on it.
    """
    stem = f"{head}-{backbone}-{kernel}{'' if fitted else '-random'}"
    files = Model(*(folder / f"{stem}{end}" for end in (".safetensors", ".onnx", ".plain.onnx")))
    if all(path.exists() for path in files):
        return files
    torch.manual_seed(0)
    spec = ModelSpec(
        tuple(f"class{label}" for label in range(CLASSES)),
        voc_palette(CLASSES),
        head=head,
        backbone=backbone,
        score_stride=SCORE_STRIDE[head],
    )
    network = build_network(spec).eval()
    if fitted:
        _fit(network, spec)
    with torch.no_grad():
        _move(network.upsample, kernel)
    save_checkpoint(files.checkpoint, Checkpoint(spec, network.state_dict(), {}, {}))
    export_onnx(files.checkpoint, files.ours, crops=None)
    _export_plainly(network, spec, files.plain)
    return files


def _fit(network: FCN, spec: ModelSpec) -> None:
    """Train the score layers on drawn scenes, by cross-entropy; the body stays random."""
    scenes = [draw_scene(_TRAINING_HW, seed) for seed in range(_TRAINING_SCENES)]
    normalise = Deployed(network, spec).normalise
    images = [normalise(torch.from_numpy(image)[None]) for image, _ in scenes]
    strides = (32, *network.skip_strides)
    with torch.no_grad():
        _calibrate(network, images)
        features = [
            torch.cat([_features(network, x, stride) for x in images]) for stride in strides
        ]
    truth = torch.from_numpy(np.stack([labels for _, labels in scenes])).long()
    one_hot = F.one_hot(truth, CLASSES).permute(0, 3, 1, 2).float()
    shares = F.avg_pool2d(one_hot, spec.score_stride)
    layers = (network.score, *network.skips)
    for parameter in network.score.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=0.01)
    for _ in range(_STEPS):
        scores: Tensor = layers[0](features[0])
        for double, layer, tap in zip(network.doublings, layers[1:], features[1:], strict=True):
            scores = double(scores) + layer(tap)
        optimizer.zero_grad()
        F.cross_entropy(scores, shares).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        for parameter in (parameter for layer in layers for parameter in layer.parameters()):
            # Softmax does not see it, and with plain gradient descent it would not have grown.
            parameter -= parameter.mean(0)


def _features(network: FCN, image: Tensor, stride: int) -> Tensor:
    layers = {8: 6, 16: 7, 32: 8}[stride]  # of a ResNet without its last two
    features: Tensor = network.body[:layers](image)
    return features


def _calibrate(network: FCN, images: list[Tensor]) -> None:
    """Give batch norm the statistics of the scenes, so that activations keep their size."""
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average, says its documentation
    network.train()
    for image in images:
        network.body(image)
    network.eval()


def _move(layer: nn.ConvTranspose2d, kernel: Kernel) -> None:
    """Move the kernel away from the bilinear one: smoothly, as training does; or by white noise."""
    if kernel == "bilinear":
        return
    random = torch.Generator().manual_seed(1)
    shape = layer.weight.shape
    noise = torch.randn(*shape[:2], *(shape[2:] if kernel == "rough" else (4, 4)), generator=random)
    if kernel == "learned":
        noise = F.interpolate(noise, shape[2:], mode="bicubic")
    between, within = ROUGH if kernel == "rough" else LEARNED
    own = torch.eye(len(noise))[:, :, None, None]
    layer.weight += noise / noise.std() * (between + (within - between) * own)
    if layer.bias is not None:
        layer.bias += 0.03 * torch.randn(len(layer.bias), generator=random)


def _export_plainly(network: FCN, spec: ModelSpec, path: Path) -> None:
    """Export as PyTorch's own exporter does; batch norm folded, as ONNX Runtime would, too."""
    fold_batch_norm(network)
    step = spec.output_stride
    image = torch.zeros(2, 3 * step, 5 * step, 3, dtype=torch.uint8)
    axes = {0: Dim("batch"), 1: step * Dim("rows"), 2: step * Dim("columns")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch
        program = torch.onnx.export(
            Deployed(network, spec).eval(),
            (image,),
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=(axes,),
        )
    assert program is not None  # typed optional; dynamo=True always returns one
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {SPEC_KEY: spec.to_json()})
    onnx.save_model(proto, path)
