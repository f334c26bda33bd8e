"""Checkpoints and starting weights: what is read, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from fcn_deploy.errors import EnvironmentFault, ModelError
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.backbone import initialise_body
from fcn_deploy.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_network,
    save_checkpoint,
)
from fcn_deploy.training.network import build_network

SPEC = ModelSpec(("a", "b"), voc_palette(2))


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    weights = build_network(SPEC).state_dict()
    extra = {"0.momentum_buffer": torch.ones(3)}
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, Checkpoint(SPEC, weights, extra, {"epoch": 4}))
    read = load_checkpoint(path)
    assert read.spec == SPEC
    assert read.resume == {"epoch": 4}
    assert torch.equal(read.resume_tensors["0.momentum_buffer"], torch.ones(3))
    assert read.weights.keys() == weights.keys()
    network, spec = load_network(path)
    assert not network.training
    assert spec == SPEC


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="no checkpoint that can be read"):
        load_checkpoint(path)


def test_weights_without_a_description_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="no description of the model"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("score.bias"), "score.bias is missing"),
        (lambda w: w.update(stray=torch.ones(1)), "stray is not part of the network"),
        (lambda w: w.update({"score.bias": torch.ones(3)}), r"shape \(3,\), not \(2,\)"),
        (lambda w: w["score.bias"].fill_(float("nan")), "values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: object, words: str) -> None:
    weights = {name: tensor.clone() for name, tensor in build_network(SPEC).state_dict().items()}
    change(weights)  # type: ignore[operator]
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, Checkpoint(SPEC, weights, {}, {}))
    with pytest.raises(ModelError, match=words):
        load_network(path)


@pytest.fixture(scope="module")
def resnet() -> torchvision.models.ResNet:
    torch.manual_seed(5)
    return torchvision.models.resnet18(weights=None)


@pytest.mark.parametrize("kind", ["pth", "old.pth", "safetensors", "checkpoint"])
def test_body_takes_torchvisions_layout_and_our_own(
    tmp_path: Path, resnet: torchvision.models.ResNet, kind: str
) -> None:
    path = tmp_path / f"weights.{'pth' if 'pth' in kind else 'safetensors'}"
    if "pth" in kind:
        old = kind == "old.pth"  # from before batch norm counted its batches
        state = resnet.state_dict().items()
        torch.save({k: v for k, v in state if not (old and k.endswith("_tracked"))}, path)
    elif kind == "safetensors":
        save_file(resnet.state_dict(), path)
    else:
        network = build_network(SPEC)
        network.body.load_state_dict(
            torch.nn.Sequential(*list(resnet.children())[:-2]).state_dict()
        )
        save_checkpoint(path, Checkpoint(SPEC, network.state_dict(), {}, {}))
    network = build_network(SPEC).eval()
    initialise_body(network, "resnet18", str(path))
    image = torch.rand(1, 3, 64, 64)
    resnet.eval()
    with torch.no_grad():
        pooled = network.body(image).mean((2, 3))
        torch.testing.assert_close(resnet.fc(pooled), resnet(image))


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    with pytest.raises(ModelError, match="not part of the network"):
        initialise_body(build_network(SPEC), "resnet18", str(path))


class Program:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["pickle", "whole model", "junk", "missing"])
def test_files_that_are_not_plain_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Program()))
    elif how == "whole model":
        torch.save(torch.nn.Linear(1, 1), path)
    elif how == "junk":
        path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ModelError) as caught:
        initialise_body(build_network(SPEC), "resnet18", str(path))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_imagenet_offline_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(EnvironmentFault, match=r"--weights FILE .* or --weights none"):
        initialise_body(build_network(SPEC), "resnet18", "imagenet")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut"])
def test_imagenet_with_a_damaged_cache_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name).write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="--weights none") as caught:
        initialise_body(build_network(SPEC), "resnet18", "imagenet")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("change", [{"head": "fcn4s"}, {"backbone": "vgg16"}, {"score_stride": 16}])
def test_networks_that_do_not_exist_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    spec = replace(SPEC, **change)  # type: ignore[arg-type]
    save_checkpoint(path, Checkpoint(spec, build_network(SPEC).state_dict(), {}, {}))
    with pytest.raises(ModelError, match="There is no network"):
        load_network(path)


def test_imagenet_goes_through_torchvisions_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resnet: torchvision.models.ResNet
) -> None:
    # A file of the right name in TORCH_HOME is taken without asking the network.
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(resnet.state_dict(), folder / Path(weights.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = build_network(SPEC)
    initialise_body(network, "resnet18", "imagenet")
    loaded = network.body.state_dict()["0.weight"]
    assert torch.equal(loaded, resnet.conv1.weight)
