"""The network against the paper, the d2l chapter and linear algebra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.network import (
    FCN,
    SCORE_STRIDE,
    Deployed,
    bilinear_kernel,
    build_network,
    parameter_count,
    upsampling,
)

PHOTO = Path(__file__).parents[3] / "shared" / "data" / "catdog.jpg"
SAMPLE = Path(__file__).parents[2] / "samples" / "val" / "images"


def photograph() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The photo of the d2l chapter where it is at hand, else a sample scene."""
    path = PHOTO if PHOTO.exists() else sorted(SAMPLE.iterdir())[0]
    return np.asarray(Image.open(path).convert("RGB"))


def test_parameter_counts_of_the_chapter() -> None:
    network = FCN(21)
    assert parameter_count(network.body) == 11_176_512
    assert parameter_count(network.score) == 10_773
    assert parameter_count(network.upsample) == 1_806_357
    without_bias = FCN(21, upsampling_bias=False)
    assert parameter_count(without_bias.upsample) == 1_806_357 - 21


@pytest.mark.parametrize("head", sorted(SCORE_STRIDE))
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_logits_have_the_size_of_the_image(head: str, backbone: str) -> None:
    network = FCN(5, head=head, backbone=backbone).eval()
    with torch.no_grad():
        image = torch.zeros(2, 3, 64, 96)
        stride = SCORE_STRIDE[head]
        assert network.scores(image).shape == (2, 5, 64 // stride, 96 // stride)
        assert network(image).shape == (2, 5, 64, 96)


def test_upsampling_doubles_a_photograph_like_bilinear_interpolation() -> None:
    layer = upsampling(3, 2, bias=False)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(3, 3, 4))
        image = torch.from_numpy(photograph().copy()).permute(2, 0, 1)[None].float()
        doubled = layer(image)
        wanted = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    assert doubled.shape[2:] == (2 * image.shape[2], 2 * image.shape[3])
    # Beyond the edge the convolution sees zeros, the interpolation repeats the edge.
    torch.testing.assert_close(doubled[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=0, atol=1e-3)


@pytest.mark.skipif(not PHOTO.exists(), reason="the photo of the chapter is not at hand")
def test_the_chapters_photo_doubles_in_size() -> None:
    image = torch.from_numpy(photograph().copy()).permute(2, 0, 1)[None].float()
    assert tuple(image.shape[2:]) == (561, 728)
    with torch.no_grad():
        assert tuple(upsampling(3, 2, bias=False)(image).shape[2:]) == (1122, 1456)


@given(st.integers(1, 9))
def test_bilinear_kernel_interpolates_with_any_stride(stride: int) -> None:
    # Even kernels of the k = 2s rule, and odd ones of 2s - 1: both partition unity.
    for kernel in {2 * stride, 2 * stride - 1}:
        weight = bilinear_kernel(2, 3, kernel)
        assert weight.shape == (2, 3, kernel, kernel)
        assert (weight[0, 1] == 0).all()
        assert (weight[1, 2] == 0).all()
        ramp = weight[0, 0].sum(0) / weight[0, 0].sum()
        torch.testing.assert_close(ramp, ramp.flip(0))
        sums = [
            weight[0, 0, i::stride, j::stride].sum() for i in range(stride) for j in range(stride)
        ]
        torch.testing.assert_close(torch.stack(sums), torch.ones(stride**2))


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_transposed_convolution_multiplies_by_the_transposed_matrix(
    size: int, kernel: int, stride: int
) -> None:
    size = max(size, kernel)
    weight = torch.randn(1, 1, kernel, kernel, dtype=torch.float64)
    pixels = torch.eye(size * size, dtype=torch.float64).view(-1, 1, size, size)
    matrix = F.conv2d(pixels, weight, stride=stride).flatten(1).T  # (outputs, inputs)
    small = (size - kernel) // stride + 1
    values = torch.randn(1, 1, small, small, dtype=torch.float64)
    used = (small - 1) * stride + kernel  # rows that the last window reaches
    wanted = (matrix.T @ values.flatten()).view(size, size)
    result = F.conv_transpose2d(values, weight, stride=stride)[0, 0]
    torch.testing.assert_close(result, wanted[:used, :used])
    assert (wanted[used:] == 0).all()


def test_skips_start_at_zero_and_upsampling_as_asked() -> None:
    bilinear = FCN(4, head="fcn8s")
    assert all(not parameter.any() for parameter in bilinear.skips.parameters())
    for layer in bilinear.upsampling_layers():
        torch.testing.assert_close(layer.weight.detach(), bilinear_kernel(*layer.weight.shape[:3]))
    xavier = FCN(4, head="fcn8s", upsampling_init="xavier")
    assert xavier.upsample.weight[0, 1].abs().sum() > 0


def test_deployed_network_normalises_as_torchvision() -> None:
    spec = ModelSpec(("a", "b"), voc_palette(2))
    model = Deployed(build_network(spec), spec)
    image = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    wanted = image.permute(0, 3, 1, 2).double() / 255
    mean = torch.tensor(spec.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float64).view(1, 3, 1, 1)
    torch.testing.assert_close(
        model.normalise(image).double(), (wanted - mean) / std, rtol=0, atol=2e-6
    )


def test_deployed_network_returns_labels_logits_and_scores() -> None:
    spec = ModelSpec(("a", "b", "c"), voc_palette(3), head="fcn8s", score_stride=8)
    network = build_network(spec).eval()
    nn.init.normal_(network.skips[0].weight)  # type: ignore[arg-type]
    with torch.no_grad():
        labels, logits, scores = Deployed(network, spec)(torch.zeros(1, 32, 64, 3).byte())
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(labels.long(), logits.argmax(1))
    torch.testing.assert_close(network.upsample(scores), logits)
