"""Networks that are not ours: exported, compared, merged, tiled, built; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fcn_deploy
from fcn_deploy import ModelSpec
from fcn_deploy.describe import describe
from fcn_deploy.engine import build_engine
from fcn_deploy.engine_files import read_passport
from fcn_deploy.errors import CheckFailedError, ModelError, UsageError
from fcn_deploy.loading import load
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.parity import TOLERANCES, generated_crops
from fcn_deploy.profile_planner import plan_for_folder
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.training.foreign import EagerModule
from small_models import photos

SPEC = ModelSpec.custom("abcd", output_stride=4)
MEAN, STD = (0.2, 0.5, 0.6), (0.3, 0.2, 0.1)


class Network(nn.Module):
    """Two strided convolutions with batch norm, as dictionary or tensor, and some last layer.

    Args:
        last: What enlarges: ``transposed`` convolution, ``bilinear``, or ``nearest``, which cannot
            be merged as scores; ``pooled`` adds a mean of the image before.
        after: Whether a convolution comes after it.
    """

    def __init__(self, last: str, *, after: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.before = nn.BatchNorm2d(3)  # before a convolution, into which it cannot be folded
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3, 2, 1)
        self.enlarge = nn.ConvTranspose2d(4, 4, 8, 4, 2)
        self.last, self.after = last, nn.Conv2d(4, 4, 3, padding=1) if after else nn.Identity()
        for norm in (self.before, self.norm):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]

    def scores(self, image: Tensor) -> Tensor:
        scores: Tensor = self.second(self.norm(self.first(self.before(image))).relu())
        if self.last == "pooled":
            mean = F.adaptive_avg_pool2d(scores, 1)
            scores = scores + F.interpolate(mean, size=scores.shape[2:], mode="bilinear")
        return scores

    def forward(self, image: Tensor) -> dict[str, Tensor] | Tensor:
        scores = self.scores(image)
        if self.last == "transposed":
            return self.after(self.enlarge(scores))  # type: ignore[no-any-return]
        mode = "nearest" if self.last == "nearest" else "bilinear"
        logits = F.interpolate(scores, size=image.shape[-2:], mode=mode)
        return {"out": self.after(logits), "aux": scores}


KINDS = {  # which outputs, the stride of the scores, and the exact halo
    "transposed": (3, 4, 8),
    "bilinear": (3, 4, 8),
    "pooled": (3, 4, None),
    "nearest": (2, 1, 4),
    "after": (2, 1, 7),
}


def network(kind: str) -> Network:
    return Network("bilinear" if kind == "after" else kind, after=kind == "after")


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / f"{request.param}.onnx"
    report = fcn_deploy.export(network(request.param), SPEC, path)
    assert report.passed
    return path


def test_the_file_keeps_the_contract(exported: Path) -> None:
    outputs, stride, _ = KINDS[exported.stem]
    model = onnx.load(exported)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes.pop("image") == ["batch", "4*rows", "4*columns", 3]
    assert shapes.pop("labels") == ["batch", "4*rows", "4*columns"]
    assert shapes.pop("logits") == ["batch", 4, "4*rows", "4*columns"]
    assert shapes == ({} if outputs == 2 else {"scores": ["batch", 4, "rows", "columns"]})
    assert str(Path.cwd()).encode() not in exported.read_bytes()
    spec = read_onnx(exported).spec
    assert (spec.head, spec.backbone, spec.score_stride) == ("custom", "Network", stride)
    assert ModelSpec.from_json(spec.to_json()) == spec
    facts = describe(exported)
    assert facts["network"] == "custom, Network"
    assert facts["parity"]["passed"] is True


def test_sizes_are_no_computation_where_they_need_not_be(exported: Path) -> None:
    operators = {node.op_type for node in read_onnx(exported).proto.graph.node}
    assert ("Shape" in operators) == (exported.stem == "pooled")


def test_labels_are_those_of_pytorch(exported: Path) -> None:
    eager = EagerModule(network(exported.stem), SPEC)
    image = photos(1, 1, 101, 75)[0]
    padded = np.pad(image, ((0, 3), (0, 1), (0, 0)), "reflect")
    with load(exported) as model:
        for shape in ((1, 4, 4), (3, 8, 36), (2, 68, 52)):
            crops = photos(0, *shape)
            logits = eager.logits(crops)
            np.testing.assert_allclose(model.backend.logits(crops), logits, atol=1e-4)
            assert (model.backend.labels(crops) == logits.argmax(1)).mean() > 0.999
        inner = model.segment(image)[:90, :60]
        wanted = eager.logits(padded[None])[0].argmax(0)[:90, :60]
        assert (inner == wanted).mean() > 0.999


def test_tiled_masks_are_the_average_of_logits(exported: Path) -> None:
    image = photos(2, 1, 150, 130)[0]
    with load(exported) as model:
        assert (model.backend.upsampling is None) == (KINDS[exported.stem][0] == 2)
        for tiling in (
            Tiling((32, 48), 12),
            Tiling((48, 32), halo=8),
            Tiling((32, 32), 8, None, "hann"),
        ):
            grid = model.plan((150, 130), tiling)
            assert len(grid) > 10
            bands = model.logit_bands(image, grid, blend=tiling.blend)
            logits = np.concatenate([band for _, band in bands], 1)
            prediction = model.predict(image, tiling, confidence=True)
            assert (prediction.labels == logits.argmax(0)).mean() > 0.9999
            assert prediction.confidence is not None
        whole = model.segment(image, tile=None)
        assert (model.segment(image, tile="auto", max_memory_mib=80) == whole).all()


def test_the_exact_halo_gives_the_whole_images_answer_or_is_refused(exported: Path) -> None:
    image, halo = photos(2, 1, 150, 130)[0], KINDS[exported.stem][2]
    with load(exported) as model:
        if halo is None:
            with pytest.raises(ModelError, match=r"ReduceMean.*not known(.|\n)*--halo N"):
                model.segment(image, tile=(32, 32), halo="exact")
            return
        assert model.backend.halo == halo
        whole = model.segment(image, tile=None)
        assert (model.segment(image, tile=(32, 32), halo="exact") == whole).mean() > 0.9999
        # Nothing less would do.
        grid = model.plan((150, 130), Tiling((32, 32), halo=0))
        pieces = np.concatenate([band for _, band in model.logit_bands(image, grid)], 1)
        assert (pieces.argmax(0) != whole).any()


def test_engines_are_built_of_them(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    outputs, _, halo = KINDS[exported.stem]
    shapes = Shapes((8, 8), (64, 64), (128, 128), 2)
    options = EngineOptions(fp16=True, flavour="rtx", targets=("sm86",), profiles=(shapes,))
    plan = tmp_path / "model.fp16.plan"
    build_engine(exported, plan, options, crops=generated_crops(step=4))
    passport = read_passport(plan)
    parts = {"whole", "trunk", "head", "upsampling"} if outputs == 3 else {"whole"}
    assert set(passport.parts) == parts
    assert passport.halo == halo
    assert passport.border == ("edge" if exported.stem in ("bilinear", "pooled") else "zeros")
    assert passport.precision.fp16_arithmetic == 1


def test_shapes_of_an_engine_can_be_planned(exported: Path, toy_data: Path) -> None:
    proposal = plan_for_folder(exported, toy_data / "val" / "images", fp16=True)
    assert all(size % 4 == 0 for size in proposal.shapes.max_hw)
    assert proposal.activation_mib > 1


def test_values_that_are_not_finite_are_no_labels(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    bias = next(w for w in model.graph.initializer if w.name.endswith("second.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[2] = np.nan
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    with load(path) as broken:
        for tile in (None, (16, 16)):
            with pytest.raises(CheckFailedError, match="not finite"):
                broken.segment(photos(0, 1, 40, 40)[0], tile=tile, overlap=4)


@pytest.mark.parametrize("kind", ["bilinear", "after"])
def test_fp16_is_compared_and_is_fp16(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    report = fcn_deploy.export(network(kind), SPEC, path, fp16=True)
    assert report.tolerance == TOLERANCES["fp16"]
    assert read_onnx(path).precision == "fp16"
    image = photos(2, 1, 60, 90)[0]
    with load(path) as model:
        labels = EagerModule(network(kind), SPEC).logits(image[None, :60, :88]).argmax(1)[0]
        assert (model.segment(image[:60, :88], tile=None) == labels).mean() > 0.99


def test_normalisation_is_that_of_the_description_and_the_module_stays_as_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    module = network("bilinear").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fcn_deploy.export(module, ModelSpec.custom("abcd", output_stride=8, mean=MEAN, std=STD), path)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    crops = photos(5, 1, 16, 24)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    normal = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        result = module.eval()(normal)
    assert isinstance(result, dict)
    with load(path) as model:
        np.testing.assert_allclose(model.backend.logits(crops), result["out"].numpy(), atol=1e-4)
        assert model.spec.output_stride == 8
        assert model.spec.score_stride == 4


class Wrapped(nn.Module):
    """Something that was done to the logits of a network."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.network = how, network("transposed")

    def forward(self, image: Tensor) -> object:
        logits: Tensor = self.network(image)
        if self.how == "tuple":
            return (logits,)
        if self.how == "small":
            return logits[..., ::2, ::2]
        if self.how == "by size" and image.shape[2] > 100:
            return logits + torch.tensor([0.0, 9.0, 0.0, 0.0]).view(1, 4, 1, 1)
        if self.how == "by value" and logits.mean() > 0:
            return -logits
        if self.how == "grid":
            return torch.cat([logits[..., :4], logits[..., 4:] + image[..., 8:, :1]], 3)
        return logits


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("tuple", ModelError, 'returns a tuple, not logits(.|\n)*"out"'),
        ("small", ModelError, r"12x20 the network returns \(1, 4, 6, 10\)(.|\n)*F.interpolate"),
        ("by size", CheckFailedError, "Parity failed"),
        ("by value", ModelError, "PyTorch cannot export(.|\n)*not branch on values"),
        ("grid", ModelError, "fails on an image of 12x20(.|\n)*output_stride is said to be 4"),
    ],
)
def test_what_is_no_such_network_is_refused(
    how: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        fcn_deploy.export(Wrapped(how), SPEC, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_other_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="has 4 channels for 3 classes"):
        fcn_deploy.export(network("bilinear"), ModelSpec.custom("abc", output_stride=4), path)
    binary = nn.Conv2d(3, 1, 1)
    with pytest.raises(ModelError, match=r"torch\.zeros_like"):
        fcn_deploy.export(binary, ModelSpec.custom("ab", output_stride=4), path)


def test_outputs_that_there_are_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match=r"has no scores(.|\n)*labels, logits"):
        fcn_deploy.export(network("nearest"), SPEC, path, outputs=("labels", "scores"))
    with pytest.raises(UsageError, match="masks cannot be the outputs"):
        fcn_deploy.export(network("nearest"), SPEC, path, outputs=("masks",))
    with pytest.raises(UsageError, match="Opset 9"):
        fcn_deploy.export(network("nearest"), SPEC, path, opset=9)
    assert list(tmp_path.iterdir()) == []
