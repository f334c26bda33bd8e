"""The fully convolutional network, and the form of it that is deployed.

Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015;
the ResNet body and the kernel = 2 * stride rule as in "Dive into Deep Learning", chapter 14.11.
"""

from __future__ import annotations

import math

import torch
import torchvision
from torch import Tensor, nn

from fcn_deploy.errors import ModelError
from fcn_deploy.spec import ModelSpec

SCORE_STRIDE = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}
BACKBONES = ("resnet18", "resnet34", "resnet50")
BYTES_PER_PIXEL = {"resnet18": 160.0, "resnet34": 160.0, "resnet50": 288.0}
"""Memory of a crop while it is computed; :mod:`fcn_deploy.onnx_footprint` says it of the graph."""

# Positions of layer2 (stride 8), layer3 (16) and layer4 (32) in a ResNet without its last two
# layers.
_STAGE_AT_STRIDE = {8: 5, 16: 6, 32: 7}


def bilinear_kernel(in_channels: int, out_channels: int, kernel_size: int) -> Tensor:
    """Weight of a transposed convolution that upsamples each channel bilinearly.

    Args:
        in_channels: Channels in.
        out_channels: Channels out; channel i is made from channel i alone.
        kernel_size: Side of the kernel in pixels, odd or even.

    Returns:
        (in_channels, out_channels, kernel_size, kernel_size) float32.

    Source: the bilinear filler of Caffe's FCN (Long et al. 2015, section 3.3).
    """
    factor = (kernel_size + 1) // 2
    center = factor - 1 if kernel_size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(kernel_size, dtype=torch.float64) - center).abs() / factor
    weight = torch.zeros(in_channels, out_channels, kernel_size, kernel_size)
    for channel in range(min(in_channels, out_channels)):
        weight[channel, channel] = torch.outer(ramp, ramp).float()
    return weight


def upsampling(channels: int, stride: int, *, bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution that enlarges exactly ``stride`` times: k = 2s, p = s/2."""
    return nn.ConvTranspose2d(
        channels, channels, 2 * stride, stride=stride, padding=stride // 2, bias=bias
    )


class FCN(nn.Module):
    """A ResNet body, 1x1 convolutions to class scores, and transposed convolutions back to pixels.

    Takes normalised RGB float (N, 3, H, W) with H and W multiples of 32; returns logits
    (N, C, H, W). Skip scores of ``fcn16s`` and ``fcn8s`` start at zero, as in the paper.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        head: str = "fcn32s",
        backbone: str = "resnet18",
        upsampling_bias: bool = True,
        upsampling_init: str = "bilinear",
    ) -> None:
        super().__init__()
        resnet = torchvision.models.get_model(backbone, weights=None)
        self.body = nn.Sequential(*list(resnet.children())[:-2])
        features = resnet.fc.in_features
        self.score = nn.Conv2d(features, num_classes, 1)
        last = SCORE_STRIDE[head]
        # Coarse to fine: the features double their stride, and halve their channels, at each skip.
        self.skip_strides = [stride for stride in (16, 8) if stride >= last]
        self.skips = nn.ModuleList(
            nn.Conv2d(features * stride // 32, num_classes, 1) for stride in self.skip_strides
        )
        self.doublings = nn.ModuleList(
            upsampling(num_classes, 2, bias=False) for _ in self.skip_strides
        )
        self.upsample = upsampling(num_classes, last, bias=upsampling_bias)
        self._initialise(upsampling_init)

    def _initialise(self, upsampling_init: str) -> None:
        nn.init.xavier_uniform_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        for skip in self.skips:
            nn.init.zeros_(skip.weight)  # type: ignore[arg-type]
            nn.init.zeros_(skip.bias)  # type: ignore[arg-type]
        for layer in self.upsampling_layers():
            if upsampling_init == "bilinear":
                with torch.no_grad():
                    layer.weight.copy_(bilinear_kernel(*layer.weight.shape[:3]))
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def upsampling_layers(self) -> list[nn.ConvTranspose2d]:
        """All transposed convolutions, the last one at the end."""
        return [m for m in (*self.doublings, self.upsample) if isinstance(m, nn.ConvTranspose2d)]

    def scores(self, image: Tensor) -> Tensor:
        """What enters the last transposed convolution: (N, C, H/s, W/s)."""
        taps: dict[int, Tensor] = {}
        x = image
        for position, layer in enumerate(self.body):
            x = layer(x)
            taps[position] = x
        scores: Tensor = self.score(x)
        for stride, skip, double in zip(self.skip_strides, self.skips, self.doublings, strict=True):
            scores = double(scores) + skip(taps[_STAGE_AT_STRIDE[stride]])
        return scores

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, C, H, W) of normalised images (N, 3, H, W)."""
        logits: Tensor = self.upsample(self.scores(image))
        return logits


def build_network(spec: ModelSpec, *, upsampling_init: str = "bilinear") -> FCN:
    """The network that ``spec`` describes, freshly initialised.

    Raises:
        ModelError: There is no such network.
    """
    if spec.backbone not in BACKBONES or SCORE_STRIDE.get(spec.head) != spec.score_stride:
        raise ModelError(
            f"There is no network {spec.head} of stride {spec.score_stride} on {spec.backbone}.",
            "The checkpoint is damaged, or was written by a newer release.",
        )
    return FCN(
        spec.num_classes,
        head=spec.head,
        backbone=spec.backbone,
        upsampling_bias=spec.upsampling_bias,
        upsampling_init=upsampling_init,
    )


class Normalising(nn.Module):
    """What every shipped network begins with, so that nothing outside the file has to know it."""

    mean255: Tensor
    inverse_std255: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        mean = torch.tensor(spec.mean, dtype=torch.float64) * 255
        std = torch.tensor(spec.std, dtype=torch.float64) * 255
        self.register_buffer("mean255", mean.float().view(1, 3, 1, 1))
        self.register_buffer("inverse_std255", (1 / std).float().view(1, 3, 1, 1))

    def normalise(self, image: Tensor) -> Tensor:
        """RGB uint8 (N, H, W, 3) to normalised float32 (N, 3, H, W)."""
        # Cast first: TensorRT takes uint8 at the input only if a cast is what it feeds.
        # Planes next: three channels side by side are too short a row for anyone's vector units.
        x = image.float().permute(0, 3, 1, 2)
        return (x - self.mean255) * self.inverse_std255


class Deployed(Normalising):
    """The network as it is shipped: raw images in; labels, logits and scores out.

    Takes RGB uint8 (N, H, W, 3), H and W multiples of the output stride.
    """

    def __init__(self, network: FCN, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.network: FCN = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels uint8 (N, H, W), logits float32 (N, C, H, W), scores float32 (N, C, H/s, W/s)."""
        scores = self.network.scores(self.normalise(image))
        logits = self.network.upsample(scores)
        return decided(logits), logits, scores


class HalfDeployed(Deployed):
    """The same in half precision after normalisation, as FP16 files and engines compute.

    The network's weights must be in half precision already.
    """

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`Deployed`; logits and scores are float32 again."""
        scores = self.network.scores(self.normalise(image).half())
        logits = self.network.upsample(scores).float()
        return decided(logits), logits, scores.float()


def decided(logits: Tensor) -> Tensor:
    """Labels uint8 (N, H, W) of logits (N, C, H, W)."""
    # By way of float: TensorRT makes uint8 outputs only from floating point.
    return logits.argmax(1).float().to(torch.uint8)


def parameter_count(module: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
