"""What an engine computes in: no witness is believed that could speak for float32 as well."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.engine.proof import count_kernels, evidence, require_fp16
from fcn_deploy.errors import CheckFailedError
from fcn_deploy.passport import Precision

HALF = "Channel major FP16 format where channel % 8 == 0"
HALF_SHORT = "Half"
FLOAT = "Row major linear FP32"
BYTES = "Row major linear UInt8 format"


def tensor(name: str, kind: str) -> dict[str, Any]:
    return {
        "Name": name,
        "Location": "Device",
        "Dimensions": [1, 64, 8, 8],
        "Format/Datatype": kind,
    }


def entry(name: str, kind: str, source: str, target: str, **more: Any) -> dict[str, Any]:
    """A layer as TensorRT writes it with DETAILED verbosity."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor("in", source)],
        "Outputs": [tensor("out", target)],
        "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: node_conv2d]",
        **more,
    }


GOOD = [
    entry("cast_image", "kgen", BYTES, HALF),
    entry("node_conv2d + node_relu", "CaskConvolution", HALF, HALF),
    entry("node_conv2d_1", "CaskGemmConvolution", HALF_SHORT, HALF_SHORT),
    entry("upsample2.ConvTranspose", "CaskDeconvolutionV2", HALF, HALF),
    entry("upsample.windows.MatMul", "CaskGemmMatrixMultiply", HALF, HALF),
    entry("node_max_pool2d", "CaskPooling", HALF, HALF),
]


def engine(*layers: Any) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["image", "labels"]})


def test_an_fp16_engine_is_counted_by_what_its_layers_do() -> None:
    assert count_kernels(engine(*GOOD)) == {"FP16": 2, "FP16 products": 4}


@pytest.mark.parametrize(
    "layer",
    [
        entry("node_conv2d_7", "CaskConvolution", FLOAT, FLOAT),
        entry("node_conv2d_7", "CaskConvolution", "Float", "Float"),
        entry("Conv_7", "Convolution", FLOAT, FLOAT),
        entry("deconv", "CaskDeconvolutionV2", FLOAT, FLOAT),
        entry("upsample.windows.MatMul", "MatrixMultiply", FLOAT, FLOAT),
        entry("__myl_Conv_0x5f", "kgen", FLOAT, FLOAT),
        entry("{ForeignNode[node_conv2d_7...node_argmax]}", "Myelin", FLOAT, FLOAT),
        entry("node_conv2d_7 + cast_scores", "gemm", FLOAT, FLOAT),
    ],
    ids=lambda layer: f"{layer['LayerType']} {layer['Inputs'][0]['Format/Datatype']}",
)
def test_a_single_float32_product_shows(layer: dict[str, Any]) -> None:
    counts = count_kernels(engine(*GOOD, layer))
    assert counts is not None
    assert counts["float32 products"] == 1
    assert counts["FP16 products"] == 4


@pytest.mark.parametrize(
    "layer",
    [
        # What normalises the image is float32 on purpose.
        entry("node_sub", "ElementWise", FLOAT, FLOAT),
        entry("PWN(node_sub, node_mul)", "PointWiseV2", FLOAT, FLOAT),
        entry("node_permute", "Shuffle", FLOAT, FLOAT),
        # Copies are called after the layers that they are made for.
        entry("Reformatting CopyNode for Input Tensor 0 to node_conv2d", "Reformat", FLOAT, FLOAT),
        entry("Reformatting CopyNode for Output Tensor 0 to Conv_3", "kgen", FLOAT, FLOAT),
        entry("node_conv2d_3.weight", "Constant", FLOAT, FLOAT),
        entry("node_convert_element_type", "Cast", BYTES, FLOAT),
        entry("node_convert_element_type", "kgen", BYTES, FLOAT),
        entry("node_conv2d_22.shape", "ShapeHostToDevice", "Int64", FLOAT),
    ],
    ids=lambda layer: f"{layer['LayerType']} {layer['Name'][:20]}",
)
def test_float32_that_multiplies_nothing_is_no_reason_to_refuse(layer: dict[str, Any]) -> None:
    assert count_kernels(engine(*GOOD, layer)) == {"FP16": 2, "FP16 products": 4, "float32": 1}


def test_a_layer_with_one_fp16_end_counts_as_fp16() -> None:
    scores = entry("node_conv2d_20 + cast_scores", "CaskConvolution", HALF, FLOAT)
    assert count_kernels(engine(scores)) == {"FP16 products": 1}


def test_types_that_are_neither_are_others() -> None:
    assert count_kernels(engine(entry("node_argmax", "TopK", "Int32", "Int64"))) == {"other": 1}
    assert count_kernels(engine({"Name": "signal", "LayerType": "Signal"})) == {"other": 1}


@pytest.mark.parametrize(
    "text",
    [
        engine("node_conv2d + node_relu", "node_conv2d_1"),  # verbosity of LAYER_NAMES_ONLY
        engine(GOOD[0], "node_conv2d"),
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"Layers": null}',
        '{"Layers": 5}',
        '{"Layers": [{"Name": "x", "Inputs": null}]}',
        '{"Layers": [{"Name": "x", "Inputs": ["half"]}]}',
        '{"Layers": [null]}',
        '{"Layers": ' + "[" * 100_000,
        engine(*GOOD)[:-40],
    ],
)
def test_what_cannot_be_read_back_proves_nothing(text: str) -> None:
    assert count_kernels(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Layers", "Name", "LayerType", "Inputs", "Outputs", "Format/Datatype"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(JSON | st.fixed_dictionaries({"Layers": st.lists(JSON, max_size=4)}))
def test_any_json_is_counted_or_is_none(value: Any) -> None:
    counts = count_kernels(json.dumps(value))
    assert counts is None or all(count > 0 for count in counts.values())


GIVEN = Precision("fp16", 24, 24, 1.0, 0.98, 0.0)


def test_the_evidence_is_said_in_words() -> None:
    words = evidence(replace(GIVEN, fp16_layers=23, fp32_weights=0.07))
    assert words == (
        "23 of 24 layers with weights are typed FP16, 98% of the convolutions' weights lie in the "
        "plan as FP16, 7% as float32"
    )
    read = evidence(replace(GIVEN, kernels={"FP16 products": 23, "float32 products": 1}))
    assert read.endswith("; read back: 23 FP16 products, 1 float32 products")


def test_only_fp16_passes_as_fp16() -> None:
    require_fp16(GIVEN, "trunk")
    with pytest.raises(CheckFailedError, match="The trunk engine was to compute in FP16") as caught:
        require_fp16(replace(GIVEN, computes="fp32", fp16_layers=0), "trunk")
    assert "0 of 24 layers" in caught.value.problem
    assert caught.value.exit_code == 6
    assert len(str(caught.value).splitlines()) <= 3
