"""One small data set and one small training, shared by all tests that need a real model."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: on a busy machine two OpenMP threads that spin while they wait for each
# other take three times as long for layers as small as those of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from fcn_deploy.backends.tensorrt_flavour import require_gpu
from fcn_deploy.errors import FcnDeployError

# How long an example takes says more about the machine than about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

CLASSES = """
[[classes]]
name = "ground"
color = [40, 120, 40]

[[classes]]
name = "disc"
color = [200, 30, 30]

[[classes]]
name = "stripe"
color = [30, 30, 200]
"""


def draw_scene(seed: int, height: int, width: int) -> tuple[Image.Image, Image.Image]:
    """A textured ground with a disc and a stripe: RGB image, and mask with ids in gray."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    left = int(random.integers(0, width - width // 4))
    labels[:, left : left + width // 5] = 2
    center = random.integers((20, 20), (height - 10, width - 10))
    labels[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < (height // 4) ** 2] = 1
    colors = np.array([[70, 140, 60], [190, 60, 50], [50, 70, 180]])[labels]
    noise = random.integers(-30, 31, (height, width, 1))
    image = np.clip(colors + noise, 0, 255).astype(np.uint8)
    labels[:2, :2] = 255
    return Image.fromarray(image), Image.fromarray(labels)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and three validation scenes in the plain layout, sizes off the 32 grid."""
    root = tmp_path_factory.mktemp("toy-data")
    (root / "classes.toml").write_text(CLASSES)
    for split, count, first in (("train", 10, 0), ("val", 3, 100)):
        for number in range(count):
            image, mask = draw_scene(first + number, 70 + 9 * (number % 3), 101 + 5 * (number % 2))
            for kind, picture, suffix in (("images", image, "jpg"), ("masks", mask, "png")):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"scene{number}.{suffix}")
    return root


@pytest.fixture(scope="session")
def toy_run(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: an FCN-16s trained for some seconds, so that its logits mean something."""
    from fcn_deploy.training.config import TrainConfig
    from fcn_deploy.training.train import train

    run = tmp_path_factory.mktemp("toy") / "runs" / "toy"
    config = TrainConfig(
        head="fcn16s",
        weights="none",
        epochs=10,
        batch_size=4,
        crop_hw=(64, 64),
        optimizer="adam",
        schedule="constant",
        warmup_epochs=0,
        loss="cross-entropy",
        class_weights="none",
        scale=(1.0, 1.0),
        stretch=1.0,
        color=0.0,
        ema=0.0,
        workers=0,
        device="cpu",
    )
    train(toy_data, run, config)
    return run


@pytest.fixture(scope="session")
def toy_checkpoint(toy_run: Path) -> Path:
    return toy_run / "best.safetensors"


@pytest.fixture(scope="session")
def toy_onnx(toy_run: Path, toy_data: Path) -> Path:
    """The run's ``model.onnx``, verified on its validation images."""
    from fcn_deploy.parity import crops_of_images
    from fcn_deploy.training.to_onnx import export_onnx

    path = toy_run / "model.onnx"
    images = sorted((toy_data / "val" / "images").iterdir())
    export_onnx(toy_run / "best.safetensors", path, crops=crops_of_images(images))
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        require_gpu()
    except FcnDeployError as error:
        skip = pytest.mark.skip(reason=error.problem)
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
