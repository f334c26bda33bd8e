"""The builder at work: it shows progress, is stopped by Ctrl-C, and fails in words. All real."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper
from typer.testing import CliRunner

from fake_engines import model_of
from fcn_deploy.backends.tensorrt_flavour import Flavour, import_flavour
from fcn_deploy.cli.app import app
from fcn_deploy.engine import build_engine
from fcn_deploy.engine.configure import configure
from fcn_deploy.engine.network import parse
from fcn_deploy.engine.run_builder import OnStep, run_builder
from fcn_deploy.errors import DeviceMemoryError, EnvironmentFault
from fcn_deploy.onnx_parts import GraphPart, parts_of
from fcn_deploy.passport import Profile
from fcn_deploy.recipe import EngineOptions, Shapes
from small_models import small_model

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

SMALL = Shapes(opt_hw=(64, 64), max_hw=(128, 128), max_batch=2)
RTX = EngineOptions(flavour="rtx", profiles=(SMALL,))
WHOLE = parts_of(model_of(small_model()), RTX.profiles)[0]


def deep_model(layers: int, channels: int) -> ModelProto:
    """A network that takes the builder some time."""
    model = small_model(classes=channels)
    graph, random = model.graph, np.random.default_rng(0)
    position, first = next(
        (index, node) for index, node in enumerate(graph.node) if node.op_type == "Conv"
    )
    scores, first.output[0] = first.output[0], "deep0"
    for layer in range(layers):
        kernel = random.standard_normal((channels, channels, 3, 3)) / channels
        graph.initializer.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{layer}"))
        source, between = f"deep{layer}", f"between{layer}"
        target = scores if layer == layers - 1 else f"deep{layer + 1}"
        conv = helper.make_node("Conv", [source, f"w{layer}"], [between], pads=[1] * 4)
        graph.node.insert(position + 1 + 2 * layer, conv)
        graph.node.insert(position + 2 + 2 * layer, helper.make_node("Tanh", [between], [target]))
    return model


@pytest.fixture
def rtx() -> Flavour:
    return import_flavour("rtx")


def build(
    flavour: Flavour,
    part: GraphPart = WHOLE,
    options: EngineOptions = RTX,
    on_step: OnStep | None = None,
) -> bytes:
    network = parse(flavour, part, "a test", "a name")
    return run_builder(flavour, network, configure(flavour, network, part, options, None), on_step)


def test_progress_is_told_from_beginning_to_end(rtx: Flavour) -> None:
    told: list[tuple[str, int, int]] = []
    plan = build(rtx, on_step=lambda *step: told.append(step))
    assert plan[:4] == b"vtrt"
    assert len(told) > 20
    assert all(0 <= step <= steps for _, step, steps in told)
    last = {phase: (step, steps) for phase, step, steps in told}
    assert all(step == steps for step, steps in last.values())  # every phase has ended


def test_without_anybody_to_tell_it_builds_the_same(rtx: Flavour) -> None:
    assert abs(len(build(rtx)) - len(build(rtx, on_step=lambda *_: None))) < 4096


@pytest.mark.parametrize("error", [ValueError("the bar is broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 30])
def test_what_fails_in_the_progress_stops_the_build_and_surfaces(
    rtx: Flavour, error: BaseException, after: int
) -> None:
    told: list[str] = []

    def fail(phase: str, _step: int, _steps: int) -> None:
        told.append(phase)
        if len(told) > after:
            raise error

    with pytest.raises(type(error)) as caught:
        build(rtx, on_step=fail)
    assert caught.value is error
    assert len(told) == after + 1  # nobody is told anything afterwards
    assert "BuildCanceled" in rtx.first_error  # it did not go on to the end all the same
    assert not [t for t in threading.enumerate() if t.name.startswith("fcn-deploy-build")]
    assert build(rtx)[:4] == b"vtrt"  # and the library is none the worse


def test_a_build_that_was_stopped_is_gone_with_its_error(rtx: Flavour) -> None:
    def fail(*_: object) -> None:
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        parsed = parse(rtx, WHOLE, "a test", "a name")
        builder = weakref.ref(parsed.builder)
        with suppress(ValueError):
            run_builder(rtx, parsed, configure(rtx, parsed, WHOLE, RTX, None), fail)
        del parsed
        assert builder() is None
    finally:
        gc.enable()


GARBAGE = """
import gc, sys
sys.path += sys.argv[1:]
gc.disable()
from fcn_deploy.backends.tensorrt_flavour import import_flavour
from fcn_deploy.engine.network import parse
from test_run_builder import WHOLE
rtx = import_flavour("rtx")
class Collecting(rtx.trt.ILogger):
    def __init__(self):
        rtx.trt.ILogger.__init__(self)
    def log(self, severity, message):
        gc.collect()
rtx.logger = Collecting()
parsed = parse(rtx, WHOLE, "a test", "a name")
parsed.keep.append(parsed)
rtx.logger, parsed = Collecting(), None
parse(rtx, WHOLE, "a test", "a name")
"""


def test_an_old_builder_that_is_collected_in_a_logger_does_not_stop_the_next_one() -> None:
    # In a process of its own, which ended no more.
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    subprocess.run([sys.executable, "-c", GARBAGE, *folders], check=True, timeout=60)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("part", ["whole", "trunk", "head"])
def test_a_build_that_is_stopped_writes_nothing(
    tmp_path: Path, error: type[BaseException], part: str
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(small_model().SerializeToString())

    def stop(phase: str, step: int, _steps: int) -> None:
        if phase.startswith(part) and step:
            raise error

    with pytest.raises(error):
        build_engine(source, tmp_path / "model.plan", RTX, crops=None, on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where pytest's parent ignores it
from fcn_deploy.cli.app import main
from fcn_deploy.engine import build
right = build.run_builder
def said(*arguments):
    print("it begins", file=sys.stderr, flush=True)
    return right(*arguments)
build.run_builder = said
main()
"""


def test_ctrl_c_ends_the_program_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(deep_model(80, 32).SerializeToString())
    arguments = ["build-engine", str(source), "--flavour", "rtx", "--max-shape", "512x512"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as program:
        assert program.stderr is not None
        said = []
        for line in program.stderr:
            said.append(line)
            if "it begins" in line:
                break
        time.sleep(0.1)
        program.send_signal(signal.SIGINT)
        said += list(program.stderr)
        assert program.wait(60) == 130, said
    assert said[-1] == "Error: Interrupted. What was finished is kept.\n"
    assert sum("it begins" in line for line in said) == 1  # no other part was begun
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_too_little_workspace_is_an_error_of_memory_in_words(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(small_model().SerializeToString())
    sizes = ["--max-shape", "4096x4096", "--max-batch", "64", "--workspace", "1"]
    result = CliRunner().invoke(app, ["build-engine", str(source), "--flavour", "rtx", *sizes])
    assert result.exit_code == 5, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert "could not build the engine" in error
    assert "smaller --max-shape or --max-batch, or a larger --workspace" in error
    assert len(error.splitlines()) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_memory_is_told_from_other_failures(rtx: Flavour) -> None:
    large = replace(WHOLE, profiles=(Profile((1, 32, 32), (1, 64, 64), (64, 4096, 4096)),))
    with pytest.raises(DeviceMemoryError):
        build(rtx, large, replace(RTX, workspace_mib=1))
    with pytest.raises(EnvironmentFault) as caught:
        build(rtx, with_best((65, 64)))
    assert type(caught.value) is EnvironmentFault


def with_best(hw: tuple[int, int], step: int = 32) -> GraphPart:
    """A part whose best shape is not checked by us."""
    return replace(WHOLE, step=step, profiles=(Profile((1, 32, 32), (1, *hw), (1, 512, 512)),))


@pytest.mark.parametrize("hw", [(65, 64), (64, 65), (63, 64), (33, 47), (48, 64)])
def test_the_plan_itself_knows_which_sizes_there_are(rtx: Flavour, hw: tuple[int, int]) -> None:
    with pytest.raises(EnvironmentFault, match="height and width must be multiples of 32"):
        build(rtx, with_best(hw))


def test_multiples_are_those_of_the_network(rtx: Flavour) -> None:
    assert build(rtx, with_best((64, 96)))
    assert build(rtx, with_best((48, 80), step=16))
    with pytest.raises(EnvironmentFault, match="multiples of 16"):
        build(rtx, with_best((48, 72), step=16))
    assert build(rtx, with_best((65, 64), step=1))  # a head counts cells
