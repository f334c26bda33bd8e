"""What a model file is, without loading it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fcn_deploy.engine_files import read_passport
from fcn_deploy.errors import MissingExtraError, ModelError
from fcn_deploy.recipe import EngineOptions
from fcn_deploy.spec import PARITY_KEY, SPEC_KEY, VERIFIED_KEY, ModelSpec


def describe(path: Path) -> dict[str, Any]:
    """Facts of a checkpoint, an exported ONNX file or a plan, for people and for JSON.

    Raises:
        ModelError: Not such a file, or damaged.
        MissingExtraError: The package that reads this kind of file is not installed.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    readers = {".safetensors": _checkpoint, ".onnx": _onnx, ".plan": _plan}
    if path.suffix not in readers:
        raise ModelError(f"{path} is no model file.", f"Models end in {', '.join(readers)}.")
    kind, spec, facts = readers[path.suffix](path)
    size = round(path.stat().st_size / 2**20, 1)
    return {"file": str(path), "kind": kind, "size_mib": size, **facts, **_of_spec(spec)}


def _of_spec(spec: ModelSpec) -> dict[str, Any]:
    return {
        "network": f"{spec.head}, {spec.backbone}",
        "classes": list(spec.classes),
        "palette": [list(color) for color in spec.palette],
        "output_stride": spec.output_stride,
        "score_stride": spec.score_stride,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "training": spec.training,
    }


def _checkpoint(path: Path) -> tuple[str, ModelSpec, dict[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "train") from error
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no checkpoint that can be read: {error}.") from error
    if SPEC_KEY not in header:
        raise ModelError(f"{path} holds weights, but no description of the model.")
    counted = (shape for name, shape in shapes.items() if not _is_state(name))
    facts = {"parameters": sum(_product(shape) for shape in counted)}
    return "checkpoint", ModelSpec.from_json(header[SPEC_KEY]), facts


def _is_state(name: str) -> bool:
    # Batch norm statistics and the optimizer's tensors are no parameters.
    return name.startswith("resume.") or "running_" in name or "num_batches" in name


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _onnx(path: Path) -> tuple[str, ModelSpec, dict[str, Any]]:
    from fcn_deploy.onnx_file import read_onnx

    model = read_onnx(path)
    properties = {prop.key: prop.value for prop in model.proto.metadata_props}
    values = (*model.proto.graph.input, *model.proto.graph.output)
    operators = Counter(node.op_type for node in model.proto.graph.node)
    facts: dict[str, Any] = {
        "precision": model.precision,
        "opset": model.proto.opset_import[0].version,
        "tensors": {value.name: _shape(value) for value in values},
        "operators": dict(operators.most_common()),
        "verified": json.loads(properties[VERIFIED_KEY]) if VERIFIED_KEY in properties else None,
        "parity": json.loads(properties[PARITY_KEY]) if PARITY_KEY in properties else None,
    }
    return "ONNX", model.spec, facts


def _shape(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    sizes = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return f"{kind} [{', '.join(sizes)}]"


def _plan(path: Path) -> tuple[str, ModelSpec, dict[str, Any]]:
    passport = read_passport(path)
    facts = json.loads(passport.to_json())
    for name in ("spec", "format", "parts", "options"):
        del facts[name]
    usual = asdict(EngineOptions())
    chosen = {
        name: value
        for name, value in asdict(passport.options).items()
        if value != usual[name] and name not in ("fp16", "flavour", "profiles", "targets")
    }
    files = {
        role: {"file": part.file, "sha256": part.sha256} for role, part in passport.parts.items()
    }
    shapes = [
        " to ".join("x".join(map(str, shape)) for shape in (profile.min, profile.max))
        + f", best {'x'.join(map(str, profile.opt))}"
        for profile in passport.profiles
    ]
    told = {"crops": shapes, "files": files, "options": chosen, **facts}
    return "TensorRT plan", passport.spec, told
