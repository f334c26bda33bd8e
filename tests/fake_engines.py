"""Engines for the FAKE of TensorRT, with real passports: made of the same parts as real ones."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import cuda.bindings
import pytest
from onnx import ModelProto

from fake_cuda import FakeCuda
from fake_plan import MAGIC, VERSIONS
from fake_tensorrt import fake_module, fake_plan
from fcn_deploy.engine_files import part_path, write_engine
from fcn_deploy.onnx_file import OnnxModel, to_half
from fcn_deploy.onnx_parts import parts_of, upsampling_bytes, upsampling_of_scores
from fcn_deploy.passport import UPSAMPLING, Part, Passport, Precision
from fcn_deploy.plan_name import PlanName
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import SPEC_KEY, ModelSpec

SMALL = Shapes((32, 32), (64, 96), (128, 160), 3)


def model_of(proto: ModelProto) -> OnnxModel:
    text = next(prop.value for prop in proto.metadata_props if prop.key == SPEC_KEY)
    outputs = tuple(value.name for value in proto.graph.output)
    return OnnxModel(proto, ModelSpec.from_json(text), outputs, "fp32")


def write_fake_engine(
    path: Path,
    proto: ModelProto,
    *,
    flavour: str = "tensorrt",
    version: str = "",
    profiles: tuple[Shapes, ...] = (SMALL,),
    capability: tuple[int, int] | None = None,
    targets: tuple[str, ...] = ("portable",),
    half: bool = False,
) -> Passport:
    """Write an engine that the FAKE loads, with a passport as ``build-engine`` writes it."""
    model = model_of(proto)
    if half:
        model = OnnxModel(to_half(proto), model.spec, model.outputs, "fp16")
    parts = parts_of(model, profiles)
    release = version or VERSIONS[MAGIC[flavour]]
    contents = {
        part.role: fake_plan(
            part.proto.SerializeToString(),
            [
                {part.input: (part.dims(p.min), part.dims(p.opt), part.dims(p.max))}
                for p in part.profiles
            ],
            name=PlanName(part.role, model.precision, "0" * 64, model.spec).to_text(),
            magic=MAGIC[flavour],
            version=release,
            capability=capability,
        )
        for part in parts
    }
    upsampling = upsampling_of_scores(model)
    if upsampling is not None:
        contents[UPSAMPLING] = upsampling_bytes(upsampling)
    known = {part.role: part.profiles for part in parts}
    passport = Passport(
        parts={
            role: Part(
                part_path(path, role).name,
                hashlib.sha256(content).hexdigest(),
                known.get(role, ()),
            )
            for role, content in contents.items()
        },
        source="model.onnx",
        source_sha256="0" * 64,
        flavour=flavour,
        version=release,
        targets=targets,
        options=EngineOptions(fp16=half, flavour=flavour, profiles=profiles),
        precision=Precision(model.precision, 0, 0, 0.0, 0.0, 0.0),
        parity=None,
        spec=model.spec,
        halo=None,
        border="zeros" if upsampling is None else upsampling.border,
    )
    write_engine(path, contents, passport)
    return passport


def install_fake(
    patch: pytest.MonkeyPatch, device: FakeCuda, *, flavour: str = "tensorrt", version: str = ""
) -> None:
    """Let the package find the FAKE device, and the FAKE of one flavour, instead of real ones."""
    module = fake_module(device, flavour=flavour, version=version)
    patch.setattr(cuda.bindings, "runtime", device, raising=False)
    patch.setitem(sys.modules, {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}[flavour], module)
