"""Batch norm of two ranks is batch norm of the whole batch: forward, backward and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fcn_deploy.training.batch_norm import SharedBatchNorm2d, share_batch_norm
from fcn_deploy.training.distributed import Ranks
from fcn_deploy.training.network import FCN
from two_ranks import TwoRanks, two_ranks

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of what comes out, relative to the greatest value where that is above 1."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    with two_ranks(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


def examples(count: int, channels: int, hw: tuple[int, int], seed: int) -> list[Any]:
    """Input, gradient, weight and bias; the values lie far from zero, where variances are lost."""
    random = np.random.default_rng(seed)
    shape = (count, channels, *hw)
    x = random.normal(random.uniform(-20, 20), random.uniform(0.1, 5), shape)
    gradient = random.normal(0, 1, shape)
    affine = [random.uniform(0.5, 2, channels), random.normal(0, 1, channels)]
    return [part.astype(np.float32) for part in (x, gradient, *affine)]


def one_step(
    layer: nn.BatchNorm2d, parts: list[Any], last: bool, dtype: torch.dtype
) -> dict[str, np.ndarray[Any, Any]]:
    """Forward and backward: all that comes out of it, or is remembered."""
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.from_numpy(parts[0]).to(dtype).to(memory_format=order).requires_grad_()
    with torch.no_grad():
        if dtype == torch.float64:
            layer.double()
        layer.weight.copy_(torch.from_numpy(parts[2]))
        layer.bias.copy_(torch.from_numpy(parts[3]))
    y = layer(x)
    assert y.dtype == dtype
    y.backward(torch.from_numpy(parts[1]).to(dtype).to(memory_format=order))
    assert x.grad is not None
    found = {"y": y, "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    found |= dict(layer.named_buffers())
    return {name: value.detach().double().numpy() for name, value in found.items()}


def in_a_rank(
    _: Ranks, parts: list[Any], last: bool, dtype: torch.dtype
) -> dict[str, np.ndarray[Any, Any]]:
    layer = SharedBatchNorm2d.of(nn.BatchNorm2d(parts[0].shape[1]))
    return one_step(layer, parts, last, dtype)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shares=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 9),
    hw=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    last=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 2**32),
)
def test_two_ranks_normalise_as_one_process(
    pair: TwoRanks,
    shares: tuple[int, int],
    channels: int,
    hw: tuple[int, int],
    last: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    first, count = shares[0], sum(shares)
    parts = examples(count, channels, hw, seed)
    halves = [
        [part[half] for part in parts[:2]] + parts[2:]
        for half in (slice(first), slice(first, None))
    ]
    found = pair.run(in_a_rank, (halves[0], halves[1]), (last, last), (dtype, dtype))
    # In float64, since the plain layer has rounding errors of its own.
    rounded = [torch.from_numpy(part).to(dtype).double().numpy() for part in parts[:2]]
    whole = one_step(nn.BatchNorm2d(channels), rounded + parts[2:], last, torch.float64)
    for name, expected in whole.items():
        first_rank, second_rank = (rank[name] for rank in found)
        if name in ("y", "x"):
            got = np.concatenate([first_rank, second_rank])
        elif name in ("weight", "bias"):
            got = first_rank + second_rank
        else:
            assert np.array_equal(first_rank, second_rank)
            got = first_rank
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=TOLERANCES[dtype] * scale, err_msg=name
        )


@pytest.mark.parametrize(
    ("device", "kind"), [("cpu", SharedBatchNorm2d), ("cuda", nn.SyncBatchNorm)]
)
def test_shared_batch_norm_keeps_names_tensors_and_answers(device: str, kind: type) -> None:
    network = FCN(3).eval()
    before = network.state_dict(keep_vars=True)
    image = torch.rand(2, 3, 64, 32)
    answer = network(image)
    share_batch_norm(network, torch.device(device))
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) == 20
    assert {type(layer) for layer in layers} == {kind}
    after = network.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert torch.equal(network(image), answer)
