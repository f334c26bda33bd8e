"""Weights without a description: told by names and shapes, and nothing else is believed."""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from fcn_deploy.errors import EnvironmentFault, ModelError, UsageError
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.checkpoint import Checkpoint, save_checkpoint
from fcn_deploy.training.network import BACKBONES, FCN, SCORE_STRIDE, build_network
from fcn_deploy.training.plain_weights import TORCHVISION_FCNS, open_network

ROADS = (("road", "tree"), ((1, 2, 3), (4, 5, 6)), 255)
IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def torchvision_fcn(name: str, classes: int, *, aux: bool = False) -> nn.Module:
    build = getattr(torchvision.models.segmentation, name)
    network: nn.Module = build(
        weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux
    )
    return network.eval()


@pytest.mark.parametrize(
    ("name", "aux"), [("fcn_resnet50", False), ("fcn_resnet50", True), ("fcn_resnet101", True)]
)
def test_torchvisions_fcns_are_recognised(name: str, aux: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    original = torchvision_fcn(name, 2, aux=aux)
    # As torchvision's older files are, which lack the counters of batch norm.
    state = {k: v for k, v in original.state_dict().items() if not k.endswith("_tracked")}
    torch.save(state, path)
    network, spec = open_network(path, ROADS)
    assert (spec.head, spec.backbone, spec.output_stride) == ("torchvision", name, 8)
    assert (spec.classes, spec.palette) == ROADS[:2]
    assert not network.training
    with torch.inference_mode():
        torch.testing.assert_close(network(IMAGE)["out"], original(IMAGE)["out"])


@pytest.mark.parametrize("kind", ["safetensors", "around", "parallel"])
def test_files_of_other_forms_hold_the_same(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "model_29.pth")
    original = torchvision_fcn("fcn_resnet50", 2)
    state = original.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "around":  # as the training script of torchvision writes it
        content = {"model": state, "optimizer": {"lr": 0.1}, "epoch": 29, "args": Namespace(lr=1)}
        torch.save(content, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    network, spec = open_network(path, ROADS, "fcn_resnet50")
    assert spec.backbone == "fcn_resnet50"
    assert torch.equal(network.state_dict()["classifier.4.weight"], state["classifier.4.weight"])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", sorted(SCORE_STRIDE))
def test_our_own_networks_are_recognised(head: str, backbone: str, tmp_path: Path) -> None:
    bias = head == "fcn8s"
    described = ModelSpec(
        *ROADS[:2],
        head=head,
        backbone=backbone,
        upsampling_bias=bias,
        score_stride=SCORE_STRIDE[head],
    )
    state = build_network(described).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    network, spec = open_network(path, ROADS)
    assert spec == described
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_the_network_of_the_book_is_recognised(tmp_path: Path) -> None:
    body = list(torchvision.models.resnet18(weights=None).children())[:-2]
    original = nn.Sequential(*body)
    original.add_module("final_conv", nn.Conv2d(512, 2, 1))
    layer = nn.ConvTranspose2d(2, 2, kernel_size=64, padding=16, stride=32)
    original.add_module("transpose_conv", layer)
    path = tmp_path / "weights.params"
    torch.save(original.state_dict(), path)
    network, spec = open_network(path)
    assert isinstance(network, FCN)
    assert (spec.head, spec.backbone, spec.upsampling_bias) == ("fcn32s", "resnet18", True)
    with torch.inference_mode():
        torch.testing.assert_close(network(IMAGE), original.eval()(IMAGE))


def test_without_names_classes_are_numbered_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(build_network(ModelSpec(("a", "b"), voc_palette(2))).state_dict(), path)
    with caplog.at_level(logging.WARNING, "fcn_deploy"):
        _, spec = open_network(path)
    assert (spec.classes, spec.palette) == (("class0", "class1"), voc_palette(2))
    assert "weights.safetensors does not name its classes: --classes FILE does." in caplog.text


def state_of(kind: str) -> dict[str, Tensor]:
    state = build_network(ModelSpec(("a", "b"), voc_palette(2))).state_dict()
    if kind == "another network":
        return torchvision.models.resnet18(weights=None).state_dict()  # type: ignore[no-any-return]
    if kind == "a layer too few":
        del state["body.4.0.conv1.weight"]
    elif kind == "not finite":
        state["score.bias"][0] = torch.nan
    elif kind == "of another kernel":
        state["upsample.weight"] = state["upsample.weight"][..., :20, :20]
    return state


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("another network", "network that is not known(.|\n)*fcn_deploy.export"),
        ("of another kernel", "network that is not known"),
        ("a layer too few", r"body\.4\.0\.conv1\.weight is missing"),
        ("not finite", r"score\.bias has values that are not finite"),
        ("three classes", "has 2 classes, and 3 were named"),
    ],
)
def test_weights_that_fit_nothing_are_refused(kind: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state_of(kind), path)
    classes = (tuple("abc"), voc_palette(3), 255) if kind == "three classes" else ROADS
    with pytest.raises(ModelError, match=words):
        open_network(path, classes)


def test_what_is_named_must_be_what_is_there(tmp_path: Path) -> None:
    path, described = tmp_path / "weights.pth", tmp_path / "best.safetensors"
    torch.save(state_of(""), path)
    with pytest.raises(ModelError, match=r"holds no weights of torchvision's fcn_resnet50"):
        open_network(path, ROADS, "fcn_resnet50")
    with pytest.raises(UsageError, match=r"no FCN 'unet' in torchvision(.|\n)*fcn_resnet101"):
        open_network(path, ROADS, "unet")
    spec = ModelSpec(("a", "b"), voc_palette(2))
    save_checkpoint(described, Checkpoint(spec, build_network(spec).state_dict(), {}, {}))
    assert open_network(described)[1] == spec
    with pytest.raises(UsageError, match=r"says itself(.|\n)*--classes away"):
        open_network(described, ROADS)


@pytest.mark.parametrize("name", TORCHVISION_FCNS)
def test_torchvisions_own_weights_come_through_its_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    original = torchvision_fcn(name, 21, aux=True).state_dict()
    torch.save(original, folder / Path(weights.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network, spec = open_network(None, None, name)
    assert spec.classes[:2] == ("__background__", "aeroplane")
    assert torch.equal(
        network.state_dict()["backbone.conv1.weight"], original["backbone.conv1.weight"]
    )
    named = replace(spec, classes=tuple(f"c{i}" for i in range(21)))
    assert open_network(None, (named.classes, named.palette, 255), name)[1] == named


def test_torchvisions_own_weights_offline_name_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(EnvironmentFault, match="--torchvision fcn_resnet50 FILE"):
        open_network(None, None, "fcn_resnet50")
