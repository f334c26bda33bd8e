"""Execution providers: what is missing is named, what is left out of them is seen."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fcn_deploy.backends import ort_libraries, ort_providers
from fcn_deploy.backends.ort import open_ort
from fcn_deploy.backends.ort_failures import cause_of, is_out_of_memory, run_failure
from fcn_deploy.backends.ort_libraries import driver_fault, library_fault, preload
from fcn_deploy.backends.ort_options import CPU, CUDA, RTX, TENSORRT, GpuSettings, chain_of
from fcn_deploy.backends.ort_providers import RTX_PACKAGE, Provider, find_provider, listed
from fcn_deploy.backends.ort_sessions import require_placed, session_options
from fcn_deploy.errors import DeviceError, DeviceMemoryError, EnvironmentFault, ShapeError
from fcn_deploy.recipe import Shapes

no_gpu = pytest.mark.skipif(driver_fault() is None, reason="there is a GPU")
linux = pytest.mark.skipif(sys.platform != "linux", reason="libraries are named otherwise")


@no_gpu
def test_a_package_without_a_driver_is_listed_and_refused_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_onnx: Path
) -> None:
    if importlib.util.find_spec(RTX_PACKAGE) is None:
        package = tmp_path / RTX_PACKAGE
        package.mkdir()
        (package / "__init__.py").write_text("raise AssertionError('imported without a driver')")
        monkeypatch.syspath_prepend(tmp_path)
    assert RTX in listed()
    for name in ("rtx", RTX):
        with pytest.raises(DeviceError, match=f"cannot use {RTX}: there is no NVIDIA driver"):
            open_ort(toy_onnx, name)


@no_gpu
def test_auto_says_why_it_did_not_take_what_is_installed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    toy_onnx: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ort_providers, "listed", lambda: [RTX, CPU])
    monkeypatch.setattr("fcn_deploy.backends.ort.listed", lambda: [RTX, CPU])
    with caplog.at_level(logging.WARNING, "fcn_deploy"), open_ort(toy_onnx) as model:
        assert model.provider == CPU
        assert not model.labels_on_device
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"ONNX Runtime cannot use {RTX}: there is no NVIDIA")


def test_auto_does_not_take_what_opens_and_then_fails(
    monkeypatch: pytest.MonkeyPatch, toy_onnx: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def no_kernel(shape: object, dtype: object) -> object:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    def found(name: str) -> Provider:
        if name == CUDA:
            return Provider(CPU, buffers=(no_kernel,))  # type: ignore[arg-type]
        return find_provider(name)

    monkeypatch.setattr("fcn_deploy.backends.ort.find_provider", found)
    monkeypatch.setattr("fcn_deploy.backends.ort.listed", lambda: [CUDA, CPU])
    with caplog.at_level(logging.WARNING, "fcn_deploy"), open_ort(toy_onnx) as model:
        assert not model.labels_on_device
    assert "no kernel image is available" in caplog.text


def test_unknown_providers_are_refused(toy_onnx: Path) -> None:
    with pytest.raises(DeviceError, match="no execution provider 'gpu', only: cpu"):
        open_ort(toy_onnx, "gpu")


@linux
def test_the_loader_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_libraries, "driver_fault", lambda: None)
    assert library_fault(CUDA, tmp_path) is None  # it may be built in
    assert library_fault("DmlExecutionProvider", tmp_path) is None
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"damaged")
    fault = library_fault(CUDA, tmp_path)
    assert fault is not None
    assert "libonnxruntime_providers_shared.so" in fault
    assert len(fault.splitlines()) == 1


def test_preloading_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # As in a package for GPUs of a CUDA that nobody has: it prints a line for each library.
    monkeypatch.setattr(onnxruntime, "cuda_version", "99.0")
    onnxruntime.preload_dlls()
    assert "Failed to load" in capfd.readouterr().out
    preload()
    assert capfd.readouterr() == ("", "")


def test_cuda_computes_float32_as_float32() -> None:
    ((name, options),) = chain_of(CUDA, GpuSettings(), b"")
    assert name == CUDA
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_tensorrt_leaves_types_alone_and_the_rest_to_cuda(tmp_path: Path) -> None:
    settings = GpuSettings(
        shapes=Shapes((32, 64), (256, 512), (512, 1024), 8), cache=tmp_path / "new"
    )
    (name, options), (rest, _) = chain_of(TENSORRT, settings, b"graph and weights")
    assert (name, rest) == (TENSORRT, CUDA)
    assert options["trt_fp16_enable"] == "0"
    assert options["trt_profile_min_shapes"] == "image:1x32x64x3"
    assert options["trt_profile_opt_shapes"] == "image:8x256x512x3"
    assert options["trt_profile_max_shapes"] == "image:8x512x1024x3"
    assert Path(options["trt_engine_cache_path"]).parent == tmp_path / "new"


def test_engines_of_other_weights_lie_in_other_folders(tmp_path: Path) -> None:
    """ONNX Runtime would take an engine of an earlier training for that of this one."""
    settings = GpuSettings(cache=tmp_path)

    def folder(provider: str, content: bytes) -> str:
        options = chain_of(provider, settings, content)[0][1]
        return options.get("trt_engine_cache_path") or options["nv_runtime_cache_path"]

    for provider in (TENSORRT, RTX):
        assert folder(provider, b"one") == folder(provider, b"one")
        assert folder(provider, b"one") != folder(provider, b"two")
        assert not any("cache" in key for key in chain_of(provider, GpuSettings(), b"")[0][1])
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="Engines cannot be kept in"):
        chain_of(TENSORRT, GpuSettings(cache=tmp_path / "file"), b"")


def test_engines_are_made_for_shapes_and_these_are_the_limits() -> None:
    limits = GpuSettings().limits(RTX, 32)
    assert limits.max_hw == Shapes().max_hw
    assert limits.max_batch == GpuSettings(batch=99).at_once(RTX) == Shapes().max_batch
    assert GpuSettings().limits(CUDA, 32).max_hw is None
    assert GpuSettings(batch=99).at_once(CUDA) == 99
    with pytest.raises(ShapeError, match="not a multiple of 32"):
        GpuSettings(shapes=Shapes(max_hw=(1000, 1000))).limits(TENSORRT, 32)


@pytest.mark.skipif(importlib.util.find_spec(RTX_PACKAGE) is None, reason="plug-in not installed")
def test_the_plug_in_knows_the_options_it_is_given(tmp_path: Path) -> None:
    spec = importlib.util.find_spec(RTX_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    header = (Path(spec.origin).parent / "tensorrt_rtx_provider_options.h").read_text()
    for option in chain_of(RTX, GpuSettings(cache=tmp_path), b"")[0][1]:
        assert f'"{option}"' in header


def session_of(operator: str) -> onnxruntime.InferenceSession:
    """A session on the CPU of one node, with the recording of places."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 8, 8]) for n in "xy"]
    node, weights = helper.make_node(operator, ["x"], ["y"]), []
    if operator == "Conv":
        node = helper.make_node(operator, ["x", "kernel"], ["y"], pads=[1] * 4)
        weights = [onnx.numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "kernel")]
    graph = helper.make_graph([node], "one", value[:1], value[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, session_options(CUDA), providers=[CPU])


@pytest.mark.skipif(
    not hasattr(onnxruntime, "OrtEpAssignedNode"), reason="ONNX Runtime tells it since 1.24"
)
def test_convolutions_behind_the_back_of_the_gpu_are_refused_and_others_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(
        DeviceError, match=f"leaves layers of m.onnx out of {CUDA}: 1 Conv on {CPU}"
    ):
        require_placed(session_of("Conv"), CUDA, Path("m.onnx"))
    with caplog.at_level(logging.WARNING, "fcn_deploy"):
        require_placed(session_of("Conv"), CPU, Path("m.onnx"))
        assert not caplog.records
        require_placed(session_of("Relu"), CUDA, Path("m.onnx"))
    assert f"m.onnx is not all on {CUDA}: 1 Relu on {CPU}." in caplog.text


def test_an_older_onnx_runtime_is_told_to_keep_off_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "OrtEpAssignedNode", raising=False)
    options = session_options(CUDA)
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "Non-zero status code returned while running Conv node. Name:'c' Status Message: "
            "/onnxruntime_src/bfc_arena.cc:376 Failed to allocate memory for requested buffer of "
            "size 3221225472\n",
            "3,072 MiB",
        ),
        ("Available memory of 1024 is smaller than requested bytes of 33554432", "32 MiB"),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; expr=cudaMalloc", None),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; ", None),
        ("CUDNN failure 4002: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; ", None),
        (
            "[E] IExecutionContext: Error Code 2: OutOfMemory (Requested size was 1048576 bytes.)",
            "1 M",
        ),
        ("cudaErrorMemoryAllocation", None),
        ("std::bad_alloc", None),
        (MemoryError("Unable to allocate 48.0 MiB"), None),
    ],
)
def test_memory_that_is_too_short_is_said_in_mebibytes(
    message: str | MemoryError, size: str | None
) -> None:
    raised = RuntimeError(message) if isinstance(message, str) else message
    error = run_failure(raised, (4, 512, 512, 3), CUDA)
    assert isinstance(error, DeviceMemoryError)
    assert f"{CUDA} has too little memory for crops of 4x512x512x3" in error.problem
    assert "smaller --tile" in error.remedy
    assert (size or "") in error.problem
    assert ("MiB" in error.problem) == (size is not None)


def test_other_failures_are_told_in_one_line() -> None:
    cuda = (
        "/onnxruntime_src/cuda_execution_provider_info.cc:63 static FromProviderOptions() "
        '[ONNXRuntimeError] : 1 : FAIL : Failed to parse provider option "device_id": CUDA failure '
        "35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=box ;"
    )
    assert cause_of(RuntimeError(cuda)) == (
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    )
    library = "[ONNXRuntimeError] : 1 : FAIL : Failed to load library x.so with error: no y.so\n"
    assert cause_of(RuntimeError(library)) == "no y.so"
    assert (
        cause_of(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Wrong.\nx")) == "Wrong"
    )
    assert cause_of(RuntimeError()) == "RuntimeError"
    assert not is_out_of_memory(RuntimeError(cuda))
    assert type(run_failure(RuntimeError("lost"), (1, 32, 32, 3), CUDA)) is DeviceError
