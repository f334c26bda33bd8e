"""The builder at work: in a thread of its own, so that it shows progress and can be stopped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from fcn_deploy.backends.tensorrt_flavour import Flavour, requested_mib
from fcn_deploy.engine.network import Network
from fcn_deploy.errors import DeviceMemoryError, EnvironmentFault

OnStep = Callable[[str, int, int], None]
"""Called with a phase of the builder, the step that is done, and the number of steps."""

_LOOK_S = 0.05


def run_builder(flavour: Flavour, parsed: Network, config: Any, on_step: OnStep | None) -> bytes:
    """Build a plan.

    An interruption (Ctrl-C) is answered by asking the builder to stop, and raised again when it
    has: no thread of it goes on, and nothing is written.

    Raises:
        DeviceMemoryError: Too little memory for the largest shape.
        EnvironmentFault: The builder failed.
    """
    stopped: list[BaseException] = []
    config.progress_monitor = _monitor(flavour.trt, on_step, stopped)
    flavour.messages.clear()
    # Signals reach the main thread alone, and only between two steps of Python: a builder that runs
    # there for minutes would let Ctrl-C wait, or meet it inside a callback of the library.
    with ThreadPoolExecutor(1, "fcn-deploy-build") as pool:
        build = parsed.builder.build_serialized_network
        running = pool.submit(build, parsed.definition, config)
        while not running.done():
            try:
                running.exception(timeout=_LOOK_S)
            except NotYet:
                continue
            except BaseException as error:  # the monitor tells the builder
                stopped.append(error)
    if stopped:
        try:
            raise stopped[0]
        finally:
            stopped.clear()  # or its traceback would hold itself, and the builder, until collected
    plan = running.result()
    if plan is None:
        raise _failure(flavour)
    return bytes(plan)


def _failure(flavour: Flavour) -> EnvironmentFault:
    words = f"{flavour.name} {flavour.version} could not build the engine: {flavour.first_error}."
    text = " ".join(flavour.messages).lower()
    smaller = "Pass a smaller --max-shape or --max-batch, or a larger --workspace if you set one."
    if (mebibytes := requested_mib(flavour.messages)) is not None:
        words = f"Too little memory to build the engine: {mebibytes} MiB were wanted at once."
    if "outofmemory" in text or "out of memory" in text or "workspace" in text:
        return DeviceMemoryError(words, smaller)
    return EnvironmentFault(words, f"If memory is short: {smaller[0].lower()}{smaller[1:]}")


def _monitor(trt: Any, on_step: OnStep | None, stopped: list[BaseException]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def tell(self, phase: str, step: int) -> None:
            if on_step is None or stopped:
                return
            try:
                on_step(phase, step, self.steps.get(phase, 0))
            except BaseException as error:  # must not pass through the library's own frames
                stopped.append(error)

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self.tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell(phase, step + 1)
            return not stopped

        def phase_finish(self, phase: str) -> None:
            self.tell(phase, self.steps.get(phase, 0))

    return Monitor()
