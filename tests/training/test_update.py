"""A step of the optimizer: what decays, what is averaged, and what accumulation must equal."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fcn_deploy.errors import DeviceError
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.acceleration import Compiled, pick_precision, worth_compiling
from fcn_deploy.training.config import PRESETS, TrainConfig
from fcn_deploy.training.losses import Loss
from fcn_deploy.training.network import Deployed, build_network
from fcn_deploy.training.update import Batch, Updates, build_optimizer

CPU = torch.device("cpu")
SGD = TrainConfig(optimizer="sgd", loss="cross-entropy", class_weights="none", ema=0.0)
SPEC = ModelSpec(("a", "b", "c"), voc_palette(3), score_stride=32, head="fcn32s")


def updates(config: TrainConfig, precision: str = "fp32") -> Updates:
    torch.manual_seed(0)
    model = Deployed(build_network(SPEC), SPEC)
    return Updates(model, Loss(config.loss), config, precision=precision, compiled=False)


def batch(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count, 32, 32), generator=generator, dtype=torch.uint8)
    labels[0, : 7 * seed] = 255
    return image, labels


def weights(of: Updates) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in of.network.state_dict().items()}


def test_accumulated_batches_are_one_large_batch() -> None:
    # Without batch norm's statistics of the batch, which see one at a time. The parts count
    # different numbers of pixels, so that a mean of means would be another step.
    parts = [batch(2, seed=1), batch(2, seed=2)]
    whole = (torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]]))
    together, apart = updates(SGD), updates(SGD)
    for one, batches in ((together, [whole]), (apart, parts)):
        one.network.eval()
        facts = one.step(batches, lr=0.1)
        assert facts[2] == 4 * 32 * 32 - 7 * 32 - 14 * 32
    for name, value in weights(together).items():
        assert torch.allclose(value, weights(apart)[name], atol=1e-6), name


def test_only_convolutions_decay_unless_all_is_wanted() -> None:
    network = build_network(SPEC)
    groups = build_optimizer(network, SGD).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    named = {name for name, p in network.named_parameters() if id(p) in decayed}
    assert "score.weight" in named
    assert "body.0.weight" in named
    assert not any(
        "bias" in name or "upsample" in name or name == "body.1.weight" for name in named
    )
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert len(build_optimizer(network, replace(SGD, decay_all=True)).param_groups) == 1


def test_the_average_follows_the_weights_and_trusts_its_start_little() -> None:
    average = updates(replace(SGD, ema=0.999))
    average.train_mode()
    seen = []
    for step in range(4):
        average.step([batch(2, step)], lr=0.05)
        seen.append(average.network.score.weight.detach().clone())
    expected = seen[0]
    for steps, current in enumerate(seen[1:], 1):
        decay = (1 + steps) / (10 + steps)
        expected = decay * expected + (1 - decay) * current
    assert torch.allclose(average.deployed.score.weight, expected, atol=1e-7)
    assert not torch.equal(average.deployed.score.weight, average.network.score.weight)
    statistics = average.deployed.body[1]
    assert isinstance(statistics, torch.nn.BatchNorm2d)
    assert statistics.num_batches_tracked == 4
    assert average.deployed is not average.network
    assert updates(SGD).deployed is not None


def test_bf16_computes_other_logits_but_keeps_float32_weights() -> None:
    plain, mixed = updates(SGD), updates(SGD, precision="bf16")
    for one in (plain, mixed):
        one.network.eval()
        one.step([batch(2, 0)], lr=0.1)
    plain_weight, mixed_weight = (one.network.score.weight for one in (plain, mixed))
    assert mixed_weight.dtype == torch.float32
    assert not torch.equal(plain_weight, mixed_weight)
    assert torch.allclose(plain_weight, mixed_weight, atol=0.02)


def test_auto_precision_is_what_the_cpu_multiplies() -> None:
    found = torch.cpu.get_capabilities()
    native = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    assert pick_precision("auto", CPU) == ("bf16" if native else "fp32")
    assert pick_precision("bf16", CPU) == "bf16"
    with pytest.raises(DeviceError, match="do not train in fp16"):
        pick_precision("fp16", CPU)


def test_short_trainings_are_not_compiled() -> None:
    assert not worth_compiling("auto", CPU, steps=100, pixels=320 * 480)
    assert not worth_compiling("auto", CPU, steps=10_000, pixels=64 * 64)
    assert worth_compiling("on", CPU, steps=1, pixels=32 * 32)
    assert not worth_compiling("off", CPU, steps=10**6, pixels=10**6)


def test_a_compiled_function_is_the_function() -> None:
    compiled = Compiled(lambda x: (x * 2).sin())
    x = torch.linspace(0, 1, 7)
    for _ in range(2):
        assert torch.allclose(compiled(x), (x * 2).sin())


def test_where_compiling_fails_training_goes_on_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        compiled = Compiled(lambda x: (x * 3).cos() + x.exp())
        with caplog.at_level(logging.WARNING, "fcn_deploy"):
            assert torch.allclose(compiled(torch.zeros(5)), torch.full((5,), 2.0))
    assert "goes on without torch.compile" in caplog.text


def test_the_chapter_is_what_the_book_says() -> None:
    config = TrainConfig(**PRESETS["chapter"])
    config.check()
    assert (config.optimizer, config.lr, config.weight_decay) == ("sgd", 0.001, 1e-3)
    assert (config.batch_size, config.crop_hw, config.epochs) == (32, (320, 480), 5)
    assert (config.head, config.backbone, config.weights) == ("fcn32s", "resnet18", "imagenet")
    groups = build_optimizer(build_network(SPEC), config).param_groups
    assert [(group["weight_decay"], group["momentum"]) for group in groups] == [(1e-3, 0.0)]
