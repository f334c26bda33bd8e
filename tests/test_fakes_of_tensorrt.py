"""The FAKES of CUDA and TensorRT: that they have the real names, and catch what they must.

Nothing here runs on a GPU, or says anything of one.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import math
import re
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fake_cuda_names
from fake_cuda import FakeCuda
from fake_tensorrt import fake_module, fake_plan
from small_models import photos, small_model

MIB = 1 << 20
SMALL = ((1, 32, 32, 3), (1, 64, 64, 3), (2, 96, 128, 3))
LARGE = ((1, 32, 32, 3), (1, 64, 64, 3), (4, 256, 256, 3))
RELEASES = {
    "tensorrt-10.3": ("tensorrt", "10.3.0"),
    "tensorrt-10.16": ("tensorrt", "10.16.1.11"),
    "tensorrt-11.4": ("tensorrt", "11.4.0.106"),
    "tensorrt-rtx-1.7": ("rtx", "1.7.1.116"),
}
needs_cuda_bindings = pytest.mark.skipif(
    fake_cuda_names.installed is None, reason="cuda-bindings is not installed"
)


def api_names(release: str) -> dict[str, Any]:
    """Names of a real release."""
    path = Path(__file__).parent / "data" / "tensorrt_api" / f"{release}.json"
    names: dict[str, Any] = json.loads(path.read_text())
    return names


def ok(result: tuple[Any, ...]) -> Any:
    """The value of a call that succeeded."""
    assert int(result[0]) == 0, result
    return None if len(result) == 1 else result[1]


def code(result: tuple[Any, ...]) -> str:
    return str(result[0].name)


def pinned(cuda: FakeCuda, size: int) -> tuple[int, NDArray[np.uint8]]:
    """Pinned memory, and its content."""
    address = ok(cuda.cudaHostAlloc(size, cuda.cudaHostAllocDefault))
    return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def stream(cuda: FakeCuda) -> Any:
    return ok(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))


class Copies:
    """Host to device to host, through pinned memory, in a stream of its own."""

    def __init__(self, cuda: FakeCuda, size: int = 1024) -> None:
        self.cuda, self.size = cuda, size
        self.stream = stream(cuda)
        self.device = ok(cuda.cudaMalloc(size))
        (self.source, self.sent), (self.target, self.got) = pinned(cuda, size), pinned(cuda, size)

    def up(self, in_stream: Any = None) -> None:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        queue = self.stream if in_stream is None else in_stream
        ok(self.cuda.cudaMemcpyAsync(self.device, self.source, self.size, kind, queue))

    def down(self, in_stream: Any = None) -> None:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        queue = self.stream if in_stream is None else in_stream
        ok(self.cuda.cudaMemcpyAsync(self.target, self.device, self.size, kind, queue))

    def wait(self) -> None:
        ok(self.cuda.cudaStreamSynchronize(self.stream))

    def close(self) -> None:
        ok(self.cuda.cudaFree(self.device))
        ok(self.cuda.cudaFreeHost(self.source))
        ok(self.cuda.cudaFreeHost(self.target))
        ok(self.cuda.cudaStreamDestroy(self.stream))


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(64 * MIB)


@pytest.fixture
def copies(cuda: FakeCuda) -> Copies:
    return Copies(cuda)


# That they have the real names.


@needs_cuda_bindings
def test_the_fake_of_cuda_has_the_real_functions_with_the_real_parameters() -> None:
    real = fake_cuda_names.installed
    names = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert len(names) > 40
    for name in names:
        mine = list(inspect.signature(getattr(FakeCuda, name)).parameters)[1:]
        assert mine == list(inspect.signature(getattr(real, name)).parameters), name


@needs_cuda_bindings
def test_calls_that_fail_have_as_many_values_as_the_real_ones() -> None:
    """The real ones fail here for want of a driver, or are asked for nothing but that."""
    real, machine = fake_cuda_names.installed, FakeCuda(devices=0)
    if not int(real.cudaGetDeviceCount()[0]):
        pytest.skip("there is a GPU: the real functions would not fail")
    arguments: dict[str, tuple[Any, ...]] = {
        "cudaMalloc": (16,),
        "cudaMallocHost": (16,),
        "cudaHostAlloc": (16, 0),
        "cudaMemGetInfo": (),
        "cudaStreamCreate": (),
        "cudaStreamCreateWithFlags": (1,),
        "cudaEventCreateWithFlags": (2,),
        "cudaDeviceSynchronize": (),
        "cudaGetDeviceCount": (),
        "cudaSetDevice": (0,),
        "cudaGetDeviceProperties": (0,),
        "cudaStreamIsCapturing": (0,),
        "cudaStreamEndCapture": (0,),
    }
    for name, values in arguments.items():
        refused = getattr(machine, name)(*values)
        theirs = getattr(real, name)(*values)
        assert len(refused) == len(theirs), name
        assert set(refused[1:]) <= {None}


@needs_cuda_bindings
def test_stand_ins_for_cuda_bindings_have_the_real_values() -> None:
    real = fake_cuda_names.installed
    for name, value in fake_cuda_names.stand_ins().items():
        theirs = getattr(real, name)
        if isinstance(value, int):
            assert value == int(theirs), name
        for member in fake_cuda_names.ENUMS.get(name, {}):
            assert int(value[member]) == int(getattr(theirs, member)), member


def test_the_fake_of_cuda_works_without_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda_names, "installed", None)
    cuda = FakeCuda(MIB)
    copies = Copies(cuda)
    copies.sent[:] = 7
    copies.up()
    copies.down()
    copies.wait()
    assert (copies.got == 7).all()
    assert code(cuda.cudaMalloc(2 * MIB)) == "cudaErrorMemoryAllocation"
    copies.close()
    cuda.require_nothing_left()


@pytest.mark.parametrize("release", RELEASES)
def test_the_fake_of_tensorrt_has_names_of_the_real_release_only(release: str) -> None:
    names = api_names(release)
    flavour, version = RELEASES[release]
    module = fake_module(FakeCuda(), flavour=flavour, version=version)
    public = {name for name in vars(module) if not name.startswith("_")}
    assert {"Runtime", "ICudaEngine", "ILogger", "DataType"} <= public <= set(names["top"])
    host_memory = getattr(module, "IHostMemory")  # noqa: B009 - mypy knows no such attribute
    for name in public & set(names):
        own = set(dir(getattr(module, name)))
        own -= set(dir(bytes)) if getattr(module, name) is host_memory else set()
        if hasattr(getattr(module, name), "__members__"):
            own = set(getattr(module, name).__members__)
        own = {attribute for attribute in own if not attribute.startswith("_")}
        assert own <= set(names[name]), f"{name} of {release}"


@pytest.mark.parametrize("release", RELEASES)
def test_attributes_of_instances_are_names_of_the_real_release(release: str) -> None:
    names = api_names(release)
    flavour, version = RELEASES[release]
    run = Run(FakeCuda(), flavour=flavour, version=version)
    for thing, name in (
        (run.runtime, "Runtime"),
        (run.engine, "ICudaEngine"),
        (run.context(), "IExecutionContext"),
        (run.engine.create_engine_inspector(), "EngineInspector"),
    ):
        assert {key for key in vars(thing) if not key.startswith("_")} <= set(names[name])


@pytest.mark.parametrize("release", RELEASES)
def test_what_differs_between_releases(release: str) -> None:
    flavour, version = RELEASES[release]
    module = fake_module(FakeCuda(), flavour=flavour, version=version)
    rtx, old = flavour == "rtx", version.startswith("10.3")
    engine = vars(module)["ICudaEngine"]
    assert hasattr(module, "IRuntimeConfig") == (not old)
    assert hasattr(engine, "create_runtime_config") == (not old)
    assert hasattr(engine, "device_memory_size") == version.startswith("10.")
    assert hasattr(module, "CudaGraphStrategy") == hasattr(module, "IRuntimeCache") == rtx
    assert hasattr(vars(module)["Runtime"], "get_engine_validity") == rtx
    assert hasattr(vars(module)["IExecutionContext"], "is_stream_capturable") == rtx
    assert vars(module)["__version__"] == version


def test_dims_are_neither_tuples_nor_comparable_with_each_other() -> None:
    dims = vars(fake_module(FakeCuda()))["Dims"]((1, np.int64(2)))
    assert dims == (1, 2)
    assert dims == [1, 2]
    assert tuple(dims) == (1, 2)
    assert not isinstance(dims, tuple)
    with pytest.raises(TypeError):
        assert dims == dims
    with pytest.raises(TypeError):
        hash(dims)


# Memory.


def test_a_read_before_the_wait_gets_stale_data(copies: Copies) -> None:
    copies.sent[:] = 5
    copies.up()
    copies.down()
    assert (copies.got == 0xFF).all()
    copies.wait()
    assert (copies.got == 5).all()


def test_pinned_memory_overwritten_in_flight_spoils_the_copy(copies: Copies) -> None:
    copies.sent[:] = 5
    copies.up()
    copies.sent[:] = 6
    copies.down()
    copies.wait()
    assert (copies.got == 6).all()


def test_pageable_memory_is_read_at_the_call_and_written_before_it_returns(copies: Copies) -> None:
    cuda, kinds = copies.cuda, copies.cuda.cudaMemcpyKind
    array, back = np.full(1024, 5, np.uint8), np.zeros(1024, np.uint8)
    up, down = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
    ok(cuda.cudaMemcpyAsync(copies.device, array.ctypes.data, 1024, up, copies.stream))
    array[:] = 6
    ok(cuda.cudaMemcpyAsync(back.ctypes.data, copies.device, 1024, down, copies.stream))
    assert (back == 5).all()


def test_synchronous_copies_and_fills(copies: Copies) -> None:
    cuda, kinds = copies.cuda, copies.cuda.cudaMemcpyKind
    copies.sent[:] = 3
    ok(cuda.cudaMemcpy(copies.device, copies.source, 1024, kinds.cudaMemcpyDefault))
    ok(cuda.cudaMemset(copies.device, 9, 512))
    ok(cuda.cudaMemcpy(copies.target, copies.device, 1024, kinds.cudaMemcpyDefault))
    assert copies.got.tolist() == [9] * 512 + [3] * 512


def test_the_device_is_as_large_as_asked_for(cuda: FakeCuda) -> None:
    first = ok(cuda.cudaMalloc(40 * MIB))
    assert cuda.cudaMemGetInfo()[1:] == (24 * MIB, 64 * MIB)
    assert code(cuda.cudaMalloc(25 * MIB)) == "cudaErrorMemoryAllocation"
    assert cuda.cudaMalloc(25 * MIB)[1] is None
    assert code(cuda.cudaPeekAtLastError()) == "cudaErrorMemoryAllocation"
    assert code(cuda.cudaGetLastError()) == "cudaErrorMemoryAllocation"
    assert code(cuda.cudaGetLastError()) == "cudaSuccess"
    pinned(cuda, 30 * MIB)  # is the host's
    ok(cuda.cudaFree(first))
    ok(cuda.cudaMalloc(60 * MIB))


def test_what_is_not_given_back_is_named(copies: Copies) -> None:
    cuda = copies.cuda
    event = ok(cuda.cudaEventCreate())
    assert (len(cuda.live_allocations), len(cuda.live_streams), len(cuda.live_events)) == (3, 1, 1)
    with pytest.raises(AssertionError, match=r"not freed: .*device memory of 1024 bytes"):
        cuda.require_nothing_left()
    copies.close()
    with pytest.raises(AssertionError, match="not destroyed"):
        cuda.require_nothing_left()
    ok(cuda.cudaEventDestroy(event))
    cuda.require_nothing_left()


def test_faults_of_the_caller_with_memory(copies: Copies) -> None:
    cuda, kinds = copies.cuda, copies.cuda.cudaMemcpyKind
    array = np.zeros(16, np.uint8)
    to_device = kinds.cudaMemcpyHostToDevice

    def fails(text: str, call: Any, *arguments: Any) -> None:
        with pytest.raises(AssertionError, match=text):
            call(*arguments)

    fails("is no address of device memory", cuda.cudaFree, array.ctypes.data)
    fails("the middle of", cuda.cudaFree, copies.device + 512)
    fails("device memory is needed", cuda.cudaFree, copies.source)
    fails("pinned memory is needed", cuda.cudaFreeHost, copies.device)
    copy = cuda.cudaMemcpyAsync
    there, queue = copies.device, copies.stream
    fails("go beyond", copy, there, copies.source, 1025, to_device, queue)
    fails("go beyond", copy, there + 1, copies.source, 1024, to_device, queue)
    fails("is no address of device", copy, array.ctypes.data, copies.source, 16, to_device, queue)
    fails("pinned memory is needed", copy, there, there, 16, to_device, queue)
    fails("pass int", copy, np.int64(there), copies.source, 16, to_device, queue)
    ok(cuda.cudaFree(copies.device))
    fails("use after free", cuda.cudaFree, copies.device)
    fails("use after free", copy, there, copies.source, 16, to_device, queue)
    fails("no stream, or no longer", cuda.cudaStreamSynchronize, 0x77777770)
    fails("no stream|not a stream", cuda.cudaStreamSynchronize, ok(cuda.cudaEventCreate()))


def test_memory_in_flight_must_not_be_freed(copies: Copies) -> None:
    copies.up()
    with pytest.raises(AssertionError, match="freed while cudaMemcpyHostToDevice"):
        copies.cuda.cudaFree(copies.device)
    with pytest.raises(AssertionError, match="freed while cudaMemcpyHostToDevice"):
        copies.cuda.cudaFreeHost(copies.source)
    copies.wait()
    copies.close()
    copies.cuda.require_nothing_left()


def test_stream_ordered_memory(copies: Copies) -> None:
    cuda, other = copies.cuda, stream(copies.cuda)
    address = ok(cuda.cudaMallocAsync(256, copies.stream))
    with pytest.raises(AssertionError, match="race"):
        cuda.cudaMemsetAsync(address, 1, 256, other)
    ok(cuda.cudaMemsetAsync(address, 1, 256, copies.stream))
    ok(cuda.cudaFreeAsync(address, copies.stream))
    assert len(cuda.live_allocations) == 4
    copies.wait()
    assert len(cuda.live_allocations) == 3


# Streams and events.


def test_an_event_orders_two_streams(copies: Copies) -> None:
    cuda, second = copies.cuda, stream(copies.cuda)
    event = ok(cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming))
    copies.sent[:] = 4
    copies.up()
    ok(cuda.cudaEventRecord(event, copies.stream))
    ok(cuda.cudaStreamWaitEvent(second, event, 0))
    copies.down(second)
    ok(cuda.cudaStreamSynchronize(second))
    assert (copies.got == 4).all()


def test_without_an_event_it_is_a_race(copies: Copies) -> None:
    copies.up()
    with pytest.raises(AssertionError, match="race: cudaMemcpyDeviceToHost"):
        copies.down(stream(copies.cuda))


def test_an_event_recorded_too_early_does_not_help(copies: Copies) -> None:
    cuda, second = copies.cuda, stream(copies.cuda)
    event = ok(cuda.cudaEventCreate())
    ok(cuda.cudaEventRecord(event, copies.stream))
    copies.up()
    ok(cuda.cudaStreamWaitEvent(second, event, 0))
    with pytest.raises(AssertionError, match="race"):
        copies.down(second)


def test_a_wait_of_the_host_orders_as_well(copies: Copies) -> None:
    copies.up()
    copies.wait()
    copies.down(stream(copies.cuda))


def test_work_done_by_chance_is_no_order() -> None:
    """The device may have finished; as long as nobody asked, that is luck."""
    for seed in range(20):
        copies = Copies(FakeCuda(MIB, seed=seed))
        copies.up()
        second = stream(copies.cuda)
        with pytest.raises(AssertionError, match="race"):
            copies.down(second)


def test_a_seed_lets_the_device_run_ahead() -> None:
    seen = set()
    for seed in range(20):
        copies = Copies(FakeCuda(MIB, seed=seed))
        copies.sent[:] = 1
        copies.up()
        copies.down()
        ok(copies.cuda.cudaMemGetInfo())
        seen.add(int(copies.got[0]))
        copies.wait()
        assert (copies.got == 1).all()
    assert seen == {1, 0xFF}


def test_the_default_stream_waits_for_blocking_ones_only(cuda: FakeCuda) -> None:
    address, content = pinned(cuda, 64)
    device = ok(cuda.cudaMalloc(64))
    default = cuda.cudaMemcpyKind.cudaMemcpyDefault
    ok(cuda.cudaMemsetAsync(device, 1, 64, ok(cuda.cudaStreamCreate())))
    ok(cuda.cudaMemcpy(address, device, 64, default))
    assert (content == 1).all()
    ok(cuda.cudaMemsetAsync(device, 2, 64, stream(cuda)))
    with pytest.raises(AssertionError, match="race"):
        cuda.cudaMemcpy(address, device, 64, default)


def test_asking_ends_in_an_answer(copies: Copies) -> None:
    cuda, event = copies.cuda, ok(copies.cuda.cudaEventCreate())
    ok(cuda.cudaEventQuery(event))  # never recorded
    copies.up()
    copies.down()
    ok(cuda.cudaEventRecord(event, copies.stream))
    assert code(cuda.cudaEventQuery(event)) == "cudaErrorNotReady"
    assert code(cuda.cudaStreamQuery(copies.stream)) == "cudaErrorNotReady"
    answers = [code(cuda.cudaStreamQuery(copies.stream)) for _ in range(3)]
    assert answers[-1] == "cudaSuccess"
    ok(cuda.cudaEventSynchronize(event))
    ok(cuda.cudaFree(copies.device))


def test_there_is_no_clock(copies: Copies) -> None:
    cuda = copies.cuda
    start, end = ok(cuda.cudaEventCreate()), ok(cuda.cudaEventCreate())
    assert code(cuda.cudaEventElapsedTime(start, end)) == "cudaErrorInvalidResourceHandle"
    for event in (start, end):
        ok(cuda.cudaEventRecord(event, copies.stream))
    assert code(cuda.cudaEventElapsedTime(start, end)) == "cudaErrorNotReady"
    copies.wait()
    assert math.isnan(ok(cuda.cudaEventElapsedTime(start, end)))


def test_a_destroyed_stream_still_works_off_its_queue(copies: Copies) -> None:
    copies.sent[:] = 8
    copies.up()
    copies.down()
    ok(copies.cuda.cudaStreamDestroy(copies.stream))
    ok(copies.cuda.cudaDeviceSynchronize())
    assert (copies.got == 8).all()


# Graphs.


def capture(copies: Copies, mode: str = "ThreadLocal") -> None:
    modes = copies.cuda.cudaStreamCaptureMode
    begin = getattr(modes, f"cudaStreamCaptureMode{mode}")
    ok(copies.cuda.cudaStreamBeginCapture(copies.stream, begin))


def test_what_is_captured_is_done_at_the_launch_and_each_time_anew(copies: Copies) -> None:
    cuda = copies.cuda
    capture(copies)
    copies.up()
    copies.down()
    status = cuda.cudaStreamIsCapturing(copies.stream)[1]
    assert status == cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
    graph = ok(cuda.cudaStreamEndCapture(copies.stream))
    copies.wait()
    assert (copies.got == 0xFF).all()
    executable = ok(cuda.cudaGraphInstantiate(graph, 0))
    ok(cuda.cudaGraphDestroy(graph))
    for value in (1, 2):
        copies.sent[:] = value
        ok(cuda.cudaGraphLaunch(executable, copies.stream))
        assert (copies.got != value).all()
        copies.wait()
        assert (copies.got == value).all()
    assert len(cuda.live_graphs) == 1
    ok(cuda.cudaGraphExecDestroy(executable))
    copies.close()
    cuda.require_nothing_left()


@pytest.mark.parametrize(
    ("call", "mode", "error"),
    [
        ("cudaMalloc", "ThreadLocal", "cudaErrorStreamCaptureUnsupported"),
        ("cudaFree", "Global", "cudaErrorStreamCaptureUnsupported"),
        ("cudaStreamSynchronize", "Relaxed", "cudaErrorStreamCaptureUnsupported"),
        ("cudaStreamQuery", "Relaxed", "cudaErrorStreamCaptureUnsupported"),
        ("cudaDeviceSynchronize", "Relaxed", "cudaErrorStreamCaptureUnsupported"),
        ("cudaMemcpy", "ThreadLocal", "cudaErrorStreamCaptureUnsupported"),
    ],
)
def test_calls_that_end_a_capture(copies: Copies, call: str, mode: str, error: str) -> None:
    cuda = copies.cuda
    arguments: dict[str, tuple[Any, ...]] = {
        "cudaMalloc": (64,),
        "cudaFree": (copies.device,),
        "cudaStreamSynchronize": (copies.stream,),
        "cudaStreamQuery": (copies.stream,),
        "cudaMemcpy": (copies.device, copies.source, 64, 1),
    }
    capture(copies, mode)
    copies.up()
    assert code(getattr(cuda, call)(*arguments.get(call, ()))) == error
    status = cuda.cudaStreamIsCapturing(copies.stream)[1]
    assert status == cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
    assert code(cuda.cudaStreamEndCapture(copies.stream)) == "cudaErrorStreamCaptureInvalidated"
    copies.up()  # the stream works again
    copies.wait()
    copies.close()
    cuda.require_nothing_left()


def test_other_threads_may_allocate_beside_a_thread_local_capture(copies: Copies) -> None:
    answers: list[str] = []

    def allocate() -> None:
        answers.append(code(copies.cuda.cudaMalloc(64)))

    for mode in ("ThreadLocal", "Global"):
        capture(copies, mode)
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        copies.cuda.cudaStreamEndCapture(copies.stream)
    assert answers == ["cudaSuccess", "cudaErrorStreamCaptureUnsupported"]


def test_streams_join_a_capture_by_an_event_and_must_come_back(copies: Copies) -> None:
    cuda, second = copies.cuda, stream(copies.cuda)
    fork, join = ok(cuda.cudaEventCreate()), ok(cuda.cudaEventCreate())
    for returns in (True, False):
        capture(copies)
        copies.up()
        ok(cuda.cudaEventRecord(fork, copies.stream))
        ok(cuda.cudaStreamWaitEvent(second, fork, 0))
        copies.down(second)
        if returns:
            ok(cuda.cudaEventRecord(join, second))
            ok(cuda.cudaStreamWaitEvent(copies.stream, join, 0))
            executable = ok(
                cuda.cudaGraphInstantiate(ok(cuda.cudaStreamEndCapture(copies.stream)), 0)
            )
        else:
            ended = cuda.cudaStreamEndCapture(copies.stream)
            assert code(ended) == "cudaErrorStreamCaptureUnjoined"
    copies.sent[:] = 6
    ok(cuda.cudaGraphLaunch(executable, copies.stream))
    copies.wait()
    assert (copies.got == 6).all()


def test_an_event_from_outside_ends_a_capture(copies: Copies) -> None:
    cuda, event = copies.cuda, ok(copies.cuda.cudaEventCreate())
    ok(cuda.cudaEventRecord(event, stream(cuda)))
    capture(copies)
    waited = cuda.cudaStreamWaitEvent(copies.stream, event, 0)
    assert code(waited) == "cudaErrorStreamCaptureIsolation"
    ok(cuda.cudaEventRecord(event, stream(cuda)))
    assert code(cuda.cudaStreamEndCapture(copies.stream)) == "cudaErrorStreamCaptureInvalidated"


def test_a_graph_holds_addresses_and_not_memory(copies: Copies) -> None:
    cuda = copies.cuda
    capture(copies)
    copies.up()
    executable = ok(cuda.cudaGraphInstantiate(ok(cuda.cudaStreamEndCapture(copies.stream)), 0))
    ok(cuda.cudaFree(copies.device))
    ok(cuda.cudaMalloc(copies.size))
    with pytest.raises(AssertionError, match="use after free"):
        cuda.cudaGraphLaunch(executable, copies.stream)


def test_pageable_memory_is_not_captured(copies: Copies) -> None:
    array = np.zeros(16, np.uint8)
    capture(copies)
    with pytest.raises(AssertionError, match="not all of it is pinned"):
        copies.cuda.cudaMemcpyAsync(copies.device, array.ctypes.data, 16, 1, copies.stream)


# Failures that a test asks for.


def test_a_function_fails_when_asked_to(copies: Copies) -> None:
    cuda = copies.cuda
    cuda.fail_next("cudaMalloc", after=1)
    cuda.fail_next("cudaStreamSynchronize", error="cudaErrorLaunchFailure")
    answers = [code(cuda.cudaMalloc(16)) for _ in range(3)]
    assert answers == ["cudaSuccess", "cudaErrorMemoryAllocation", "cudaSuccess"]
    with pytest.raises(AssertionError, match="no function 'cudaMaloc'"):
        cuda.fail_next("cudaMaloc")
    assert code(cuda.cudaStreamSynchronize(copies.stream)) == "cudaErrorLaunchFailure"
    cuda.fail_next("cudaEventCreate")
    with pytest.raises(AssertionError):
        cuda.require_nothing_left()


def test_a_machine_without_a_device() -> None:
    cuda = FakeCuda(devices=0)
    assert code(cuda.cudaGetDeviceCount()) == "cudaErrorNoDevice"
    assert b"cudaErrorNoDevice" in cuda.cudaGetErrorString(cuda.cudaError_t.cudaErrorNoDevice)[1]
    trt = vars(fake_module(cuda))
    with pytest.raises(AssertionError, match="without a GPU"):
        trt["Runtime"](trt["Logger"]())


def test_what_the_device_says_it_is(cuda: FakeCuda) -> None:
    attributes = cuda.cudaDeviceAttr
    major = attributes.cudaDevAttrComputeCapabilityMajor
    assert ok(cuda.cudaDeviceGetAttribute(major, 0)) == 8
    properties = ok(cuda.cudaGetDeviceProperties(0))
    assert b"FAKE" in properties.name
    assert properties.totalGlobalMem == 64 * MIB
    if fake_cuda_names.installed is not None:
        assert set(vars(properties)) <= set(dir(fake_cuda_names.installed.cudaDeviceProp))
    assert code(cuda.cudaSetDevice(1)) == "cudaErrorInvalidDevice"


# Engines.


class Run:
    """An engine of the small network, and what its outputs should be."""

    def __init__(
        self,
        cuda: FakeCuda,
        *,
        flavour: str = "tensorrt",
        version: str = "10.16.1.11",
        content: bytes = b"",
    ) -> None:
        self.cuda, self.lines = cuda, list[str]()
        self.module: ModuleType = fake_module(cuda, flavour=flavour, version=version)
        self.trt: dict[str, Any] = vars(self.module)
        self.content = content or small_model(classes=4).SerializeToString()
        self.magic = b"vtrt" if flavour == "rtx" else b"ftrt"
        self.version = version
        self.runtime = self.trt["Runtime"](self._logger())
        self.engine = self.runtime.deserialize_cuda_engine(self.plan())
        self.stream = stream(cuda)

    def _logger(self) -> Any:
        lines = self.lines
        base: Any = self.trt["ILogger"]

        class Collector(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                lines.append(f"{severity.name}: {message}")

        return Collector()

    def plan(self, version: str = "", capability: tuple[int, int] | None = None) -> bytes:
        return fake_plan(
            self.content,
            [SMALL, {"image": LARGE}],
            name="a name",
            magic=self.magic,
            version=version or self.version,
            capability=capability,
        )

    def context(self, strategy: str = "STATIC") -> Any:
        strategies = self.trt["ExecutionContextAllocationStrategy"]
        return self.engine.create_execution_context(strategies[strategy])

    def bind(self, context: Any, shape: tuple[int, ...]) -> dict[str, int]:
        """Device memory for all tensors of this shape."""
        assert context.set_input_shape("image", shape)
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        addresses = {}
        for name in names:
            size = self.nbytes(context, name)
            addresses[name] = ok(self.cuda.cudaMalloc(size))
            assert context.set_tensor_address(name, addresses[name])
        return addresses

    def nbytes(self, context: Any, name: str) -> int:
        dtype = np.dtype(self.trt["nptype"](self.engine.get_tensor_dtype(name)))
        return int(math.prod(context.get_tensor_shape(name)) * dtype.itemsize)

    def labels(self, context: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One inference, waited for."""
        addresses = self.bind(context, image.shape)
        kinds, data = self.cuda.cudaMemcpyKind, image.ctypes.data
        to_device, to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        there = addresses["image"]
        ok(self.cuda.cudaMemcpyAsync(there, data, image.nbytes, to_device, self.stream))
        assert context.execute_async_v3(int(self.stream)), self.lines
        labels = np.empty(tuple(context.get_tensor_shape("labels")), np.uint8)
        there = addresses["labels"]
        ok(
            self.cuda.cudaMemcpyAsync(
                labels.ctypes.data, there, labels.nbytes, to_host, self.stream
            )
        )
        for address in addresses.values():
            ok(self.cuda.cudaFree(address))
        return labels

    def expected(self, image: NDArray[np.uint8], output: str = "labels") -> NDArray[Any]:
        import onnxruntime as ort

        session = ort.InferenceSession(self.content, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([output], {"image": image})[0])


@pytest.fixture
def run(cuda: FakeCuda) -> Run:
    return Run(cuda)


def test_what_an_engine_says_of_itself(run: Run) -> None:
    engine, modes, types = run.engine, run.trt["TensorIOMode"], run.trt["DataType"]
    assert (engine.name, engine.num_io_tensors) == ("a name", 4)
    assert engine.num_optimization_profiles == 2
    assert [engine.get_tensor_name(i) for i in range(4)] == ["image", "labels", "logits", "scores"]
    assert engine.get_tensor_mode("image") == modes.INPUT
    assert engine.get_tensor_mode("scores") == modes.OUTPUT
    assert engine.get_tensor_mode("missing") == modes.NONE
    assert engine.get_tensor_dtype("image") == types.UINT8
    assert engine.get_tensor_dtype("logits") == types.FLOAT
    assert engine.get_tensor_shape("logits") == (-1, 4, -1, -1)
    assert [tuple(s) for s in engine.get_tensor_profile_shape("image", 0)] == list(SMALL)
    assert [tuple(s) for s in engine.get_tensor_profile_shape("image", 1)] == list(LARGE)
    assert engine.device_memory_size_v2 == engine.get_device_memory_size_for_profile_v2(1)
    assert run.lines == ["ERROR: FAKE getTensorIOMode: there is no tensor 'missing'"]


@pytest.mark.parametrize("release", RELEASES)
def test_an_engine_computes_what_onnx_runtime_computes(release: str, cuda: FakeCuda) -> None:
    flavour, version = RELEASES[release]
    run = Run(cuda, flavour=flavour, version=version)
    image = photos(3, 2, 64, 96)
    labels = run.labels(run.context(), image)
    np.testing.assert_array_equal(labels, run.expected(image))
    assert len(np.unique(labels)) > 1


def test_an_exported_network_gives_the_labels_of_the_onnx_backend(toy_onnx: Path) -> None:
    from fcn_deploy.backends.ort import open_ort

    run = Run(FakeCuda(), content=toy_onnx.read_bytes())
    image = photos(4, 2, 64, 96)
    with open_ort(toy_onnx) as backend:
        np.testing.assert_array_equal(run.labels(run.context(), image), backend.labels(image))


def test_an_inference_is_done_when_its_stream_gets_to_it(run: Run) -> None:
    context, image = run.context(), photos(3, 1, 64, 64)
    addresses = run.bind(context, image.shape)
    source, staged = pinned(run.cuda, image.nbytes)
    target, result = pinned(run.cuda, 64 * 64)
    staged[:] = image.reshape(-1)
    ok(run.cuda.cudaMemcpyAsync(addresses["image"], source, image.nbytes, 1, run.stream))
    assert context.execute_async_v3(int(run.stream))
    ok(run.cuda.cudaMemcpyAsync(target, addresses["labels"], 64 * 64, 2, run.stream))
    # What was put into the stream is what runs.
    assert context.set_input_shape("image", (1, 32, 32, 3))
    context.set_tensor_address("labels", 0)
    assert (result == 0xFF).all()
    ok(run.cuda.cudaStreamSynchronize(run.stream))
    np.testing.assert_array_equal(result.reshape(1, 64, 64), run.expected(image))


def test_shapes_and_profiles(run: Run) -> None:
    context = run.context()
    assert context.infer_shapes() == ["image"]
    assert not context.all_binding_shapes_specified
    assert context.get_tensor_shape("image") == (-1, -1, -1, 3)
    assert context.get_tensor_shape("labels") == (-1, -1, -1)
    for wrong in ((3, 64, 64, 3), (1, 16, 64, 3), (1, 64, 64), (1, 64, 64, 4)):
        assert not context.set_input_shape("image", wrong)
        assert "outside profile 0 of image" in run.lines[-1]
    assert not context.set_input_shape("photo", (1, 64, 64, 3))
    with pytest.raises(TypeError):
        context.set_input_shape("image", np.array([1, 64, 64, 3]))
    assert context.set_input_shape("image", [2, 96, 128, 3])
    assert context.get_tensor_shape("scores") == (2, 4, 12, 16)
    assert not context.set_optimization_profile_async(2, int(run.stream))
    assert context.set_optimization_profile_async(1, int(run.stream))
    assert context.active_optimization_profile == 1
    assert context.infer_shapes() == ["image"]
    assert context.set_input_shape("image", (4, 256, 256, 3))
    ok(run.cuda.cudaStreamSynchronize(run.stream))


def test_an_inference_needs_shapes_addresses_and_memory(run: Run) -> None:
    context = run.context("USER_MANAGED")
    assert not context.execute_async_v3(int(run.stream))
    assert "shapes are not set: ['image']" in run.lines[-1]
    assert context.update_device_memory_size_for_shapes() == 0
    assert context.set_input_shape("image", (1, 64, 64, 3))
    assert not context.execute_async_v3(int(run.stream))
    assert "addresses are not set" in run.lines[-1]
    run.bind(context, (1, 64, 64, 3))
    assert not context.execute_async_v3(int(run.stream))
    assert "device memory are needed, 0 set" in run.lines[-1]


def test_memory_of_the_caller_is_as_much_as_the_shape_needs(run: Run) -> None:
    context = run.context("USER_MANAGED")
    run.bind(context, (1, 64, 64, 3))
    needed = context.update_device_memory_size_for_shapes()
    assert context.set_input_shape("image", (2, 64, 64, 3))
    assert context.update_device_memory_size_for_shapes() == 2 * needed
    assert run.engine.device_memory_size_v2 == 64 * needed
    assert context.set_input_shape("image", (1, 64, 64, 3))
    memory = ok(run.cuda.cudaMalloc(2 * needed))
    context.set_device_memory(memory, 2 * needed)
    # Not asked for since the shape has changed: the whole of it.
    assert not context.execute_async_v3(int(run.stream))
    assert context.update_device_memory_size_for_shapes() == needed
    assert context.execute_async_v3(int(run.stream))
    with pytest.raises(AssertionError, match="freed while an inference of a name"):
        run.cuda.cudaFree(memory)
    ok(run.cuda.cudaStreamSynchronize(run.stream))
    ok(run.cuda.cudaFree(memory))
    with pytest.raises(AssertionError, match="use after free"):
        context.execute_async_v3(int(run.stream))


def test_addresses_are_aligned_and_large_enough(run: Run) -> None:
    context = run.context()
    addresses = run.bind(context, (1, 64, 64, 3))
    with pytest.raises(AssertionError, match="multiples of 256"):
        context.set_tensor_address("labels", addresses["labels"] + 64)
    assert not context.set_tensor_address("missing", addresses["labels"])
    assert context.set_tensor_address("labels", addresses["labels"] + 256)
    with pytest.raises(AssertionError, match="tensor 'labels': 4096 bytes"):
        context.execute_async_v3(int(run.stream))
    assert context.set_tensor_address("labels", addresses["logits"])
    with pytest.raises(AssertionError, match="overlap"):
        context.execute_async_v3(int(run.stream))


def test_a_context_has_memory_of_its_own_and_gives_it_back(run: Run) -> None:
    before = len(run.cuda.live_allocations)
    context = run.context()
    assert run.cuda.live_allocations[-1].size == run.engine.device_memory_size_v2
    del context
    assert len(run.cuda.live_allocations) == before
    by_profile = run.context("ON_PROFILE_CHANGE")
    size = run.engine.get_device_memory_size_for_profile_v2(0)
    assert run.cuda.live_allocations[-1].size == size < run.engine.device_memory_size_v2
    assert by_profile.set_optimization_profile_async(1, int(run.stream))
    assert run.cuda.live_allocations[-1].size == run.engine.device_memory_size_v2
    ok(run.cuda.cudaStreamSynchronize(run.stream))
    del by_profile
    run.engine = None
    ok(run.cuda.cudaStreamDestroy(run.stream))
    run.cuda.require_nothing_left()


def test_too_little_memory_for_a_context_or_for_weights(run: Run) -> None:
    free = run.cuda.cudaMemGetInfo()[1]
    taken = ok(run.cuda.cudaMalloc(free - MIB))
    assert run.context() is None
    assert re.search(r"ERROR: .*OutOfMemory \(Requested size was \d+ bytes", run.lines[-1])
    assert run.context("USER_MANAGED") is not None
    ok(run.cuda.cudaMalloc(run.cuda.cudaMemGetInfo()[1]))
    assert run.runtime.deserialize_cuda_engine(run.plan()) is None
    assert "OutOfMemory" in run.lines[-1]
    ok(run.cuda.cudaFree(taken))


def test_two_streams_must_not_share_what_a_context_uses(run: Run) -> None:
    second = stream(run.cuda)
    context = run.context()
    run.bind(context, (1, 64, 64, 3))
    assert context.execute_async_v3(int(run.stream))
    with pytest.raises(AssertionError, match="race"):
        context.execute_async_v3(int(second))
    users = [run.context("USER_MANAGED") for _ in range(2)]
    memory = ok(run.cuda.cudaMalloc(run.engine.device_memory_size_v2))
    for user in users:
        run.bind(user, (1, 64, 64, 3))
        user.set_device_memory(memory, run.engine.device_memory_size_v2)
    assert users[0].execute_async_v3(int(run.stream))
    with pytest.raises(AssertionError, match="race"):
        users[1].execute_async_v3(int(second))
    assert users[1].execute_async_v3(int(run.stream))
    ok(run.cuda.cudaStreamSynchronize(run.stream))


def test_a_context_must_outlive_its_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    context = run.context("USER_MANAGED")
    run.bind(context, (1, 64, 64, 3))
    size = run.engine.device_memory_size_v2
    context.set_device_memory(ok(run.cuda.cudaMalloc(size)), size)
    assert context.execute_async_v3(int(run.stream))
    seen: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda raised: seen.append(str(raised.exc_value)))
    del context
    assert "destroyed while an inference" in seen[0]
    with pytest.raises(AssertionError, match="use after free"):
        run.cuda.cudaStreamSynchronize(run.stream)


def test_the_first_run_of_a_shape_cannot_be_captured(run: Run) -> None:
    context, image = run.context(), photos(5, 1, 64, 64)
    addresses = run.bind(context, image.shape)
    mode = run.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    ok(run.cuda.cudaStreamBeginCapture(run.stream, mode))
    assert not context.execute_async_v3(int(run.stream))
    ended = run.cuda.cudaStreamEndCapture(run.stream)
    assert code(ended) == "cudaErrorStreamCaptureInvalidated"
    assert context.execute_async_v3(int(run.stream))
    ok(run.cuda.cudaStreamBeginCapture(run.stream, mode))
    assert context.execute_async_v3(int(run.stream))
    graph = ok(run.cuda.cudaStreamEndCapture(run.stream))
    executable = ok(run.cuda.cudaGraphInstantiate(graph, 0))
    kinds = run.cuda.cudaMemcpyKind
    data = image.ctypes.data
    ok(run.cuda.cudaStreamSynchronize(run.stream))
    ok(run.cuda.cudaMemcpy(addresses["image"], data, image.nbytes, kinds.cudaMemcpyHostToDevice))
    ok(run.cuda.cudaGraphLaunch(executable, run.stream))
    ok(run.cuda.cudaStreamSynchronize(run.stream))
    labels = np.empty((1, 64, 64), np.uint8)
    data = labels.ctypes.data
    ok(run.cuda.cudaMemcpy(data, addresses["labels"], labels.nbytes, kinds.cudaMemcpyDeviceToHost))
    np.testing.assert_array_equal(labels, run.expected(image))
    assert context.set_input_shape("image", (1, 32, 32, 3))
    with pytest.raises(AssertionError, match="other shapes or memory since"):
        run.cuda.cudaGraphLaunch(executable, run.stream)


def test_plans_that_do_not_load(run: Run) -> None:
    plan = run.plan()
    assert plan[:4] == b"ftrt"
    assert int.from_bytes(plan[16:24], "little") == len(plan)
    assert plan[24:28] == bytes([10, 16, 1, 11])
    for wrong, text in (
        (b"vtrt" + plan[4:], "magicTag"),
        (plan[:-1], "plan.header.size == blobSize"),
        (plan + b"x", "plan.header.size == blobSize"),
        (b"", "magicTag"),
        (run.plan(version="10.3.0"), "of version 10.3.0.0, not 10.16.1.11"),
        (run.plan(capability=(9, 0)), "built for compute"),
        (fake_plan(b"no model", [SMALL]), "no ONNX file"),
    ):
        assert run.runtime.deserialize_cuda_engine(wrong) is None
        assert re.search(text, run.lines[-1])
    assert run.runtime.deserialize_cuda_engine(run.plan(capability=(8, 9))) is not None
    with pytest.raises(TypeError):
        run.runtime.deserialize_cuda_engine(5)


def test_tensorrt_fails_when_asked_to(run: Run) -> None:
    cuda, context = run.cuda, run.context()
    cuda.fail_next("deserialize_cuda_engine", log="a log line")
    assert run.runtime.deserialize_cuda_engine(run.plan()) is None
    assert run.lines[-1].endswith("a log line")
    cuda.fail_next("create_execution_context")
    assert run.context() is None
    cuda.fail_next("set_input_shape")
    assert not context.set_input_shape("image", (1, 64, 64, 3))
    run.bind(context, (1, 64, 64, 3))
    cuda.fail_next("execute_async_v3", times=2)
    answers = [context.execute_async_v3(int(run.stream)) for _ in range(3)]
    assert answers == [False, False, True]
    ok(cuda.cudaStreamSynchronize(run.stream))


def test_a_failure_on_the_device_shows_at_the_wait_and_stays(run: Run) -> None:
    cuda, context = run.cuda, run.context()
    addresses = run.bind(context, (1, 64, 64, 3))
    cuda.fail_next("execution")
    assert context.execute_async_v3(int(run.stream))
    assert code(cuda.cudaStreamSynchronize(run.stream)) == "cudaErrorIllegalAddress"
    assert code(cuda.cudaMalloc(16)) == "cudaErrorIllegalAddress"
    assert not context.execute_async_v3(int(run.stream))
    assert run.context() is None
    for address in addresses.values():  # all the same, nothing is left behind
        assert code(cuda.cudaFree(address)) == "cudaErrorIllegalAddress"
    assert code(cuda.cudaStreamDestroy(run.stream)) == "cudaErrorIllegalAddress"
    del context
    run.engine = None
    cuda.require_nothing_left()


def test_a_logger_must_be_one(run: Run) -> None:
    base: Any = run.trt["ILogger"]

    class Forgetful(base):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    for wrong in (Forgetful(), object()):
        with pytest.raises(TypeError):
            run.trt["Runtime"](wrong)


def test_what_only_rtx_has(cuda: FakeCuda) -> None:
    run = Run(cuda, flavour="rtx", version="1.7.1.116")
    trt, validity = run.trt, run.trt["EngineValidity"]
    assert run.runtime.get_engine_validity(run.plan()) == (validity.VALID, 0)
    assert run.runtime.get_engine_validity(run.plan(version="1.6.0")) == (validity.INVALID, 1)
    wrong = run.plan(capability=(12, 0))
    assert run.runtime.get_engine_validity(wrong) == (validity.INVALID, 2)
    assert run.runtime.get_engine_validity(b"ftrt") == (validity.INVALID, 32)
    config = run.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        trt["ExecutionContextAllocationStrategy"].USER_MANAGED
    )
    config.cuda_graph_strategy = trt["CudaGraphStrategy"].WHOLE_GRAPH_CAPTURE
    cache = config.create_runtime_cache()
    assert config.set_runtime_cache(cache)
    context = run.engine.create_execution_context(config)
    empty = bytes(cache.serialize())
    run.bind(context, (1, 64, 64, 3))
    size = run.engine.device_memory_size_v2
    context.set_device_memory(ok(cuda.cudaMalloc(size)), size)
    assert not context.is_stream_capturable(int(run.stream))
    assert context.execute_async_v3(int(run.stream))
    assert context.is_stream_capturable(int(run.stream))
    ok(cuda.cudaStreamSynchronize(run.stream))
    filled = bytes(cache.serialize())
    assert filled != empty
    other = config.create_runtime_cache()
    assert other.deserialize(filled)
    assert not other.deserialize(filled.replace(b"1.7.1", b"1.6.1"))
    assert not other.deserialize(b"anything")
    assert bytes(other.serialize()) == filled


def test_the_inspector_shows_the_graph(run: Run) -> None:
    formats = run.trt["LayerInformationFormat"]
    inspector = run.engine.create_engine_inspector()
    about = json.loads(inspector.get_engine_information(formats.JSON))
    assert len(about["Layers"]) == run.engine.num_layers
    assert about["Bindings"] == ["image", "labels", "logits", "scores"]
    convolution = next(layer for layer in about["Layers"] if layer["LayerType"] == "Conv")
    assert "FP32" in convolution["Outputs"][0]["Format/Datatype"]
    assert "Conv" in inspector.get_engine_information(formats.ONELINE)
