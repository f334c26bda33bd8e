"""Opening sessions, and seeing to it that they compute where they were asked to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnxruntime as ort

from fcn_deploy.backends.ort_failures import cause_of, is_out_of_memory
from fcn_deploy.backends.ort_options import CPU, GpuSettings, chain_of
from fcn_deploy.backends.ort_providers import Provider
from fcn_deploy.errors import DeviceError, DeviceMemoryError, ModelError
from fcn_deploy.onnx_file import WEIGHTED

log = logging.getLogger("fcn_deploy")

_SILENT = 4  # what ONNX Runtime complains of is raised as well; what it warns of, we check
_WARNINGS = 2

_MODEL_FAULTS = ("InvalidGraph", "InvalidProtobuf")

_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_NOTHING_ON_CPU = "session.disable_cpu_ep_fallback"


def session_options(provider: str, threads: int | None = None) -> Any:
    """Options of a session.

    Args:
        provider: In ONNX Runtime's spelling.
        threads: Threads of one run on the CPU; ``None``: as many as there are cores.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    # With patterns, the memory of a run is one block, which the arena rounds up: twice as much,
    # and no faster. Without an arena it is as much, since the C library keeps the pieces.
    options.enable_mem_pattern = provider != CPU
    if provider != CPU:
        threads = 1  # the device computes; threads that wait for work would spin
        # Since 1.24 ONNX Runtime says which nodes went where. Before, all that can be asked for is
        # that none goes to the CPU, however cheap it is.
        key = _RECORD_PLACES if _tells_places() else _NOTHING_ON_CPU
        options.add_session_config_entry(key, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _tells_places() -> bool:
    return hasattr(ort, "OrtEpAssignedNode")


def open_session(
    content: bytes, options: Any, provider: Provider, settings: GpuSettings, path: Path
) -> Any:
    """Open a session on a provider and no other.

    Args:
        content: The serialised graph.
        options: Of :func:`session_options`.
        provider: Where it is to compute.
        settings: What the provider is told.
        path: Where the graph is from, for messages.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
        DeviceError: The provider does not work, or leaves layers to another one.
        EnvironmentFault: The folder for engines cannot be written.
    """
    chain = chain_of(provider.name, settings, content)
    try:
        with _quiet() if provider.on_device else nullcontext():
            if provider.plugin is None:
                # Falling back would print that it does, and then compute on the CPU.
                session = ort.InferenceSession(content, options, providers=chain, enable_fallback=0)
            else:
                options.add_provider_for_devices([provider.plugin], chain[0][1])
                session = ort.InferenceSession(content, options, enable_fallback=0)
    except Exception as error:  # ORT's exceptions have no common public base
        raise _refusal(error, provider, path) from error
    # ORT only warns when a provider cannot be loaded, and computes on the CPU.
    if (active := session.get_providers()[0]) != provider.name:
        raise DeviceError(
            f"{path.name} loaded on {active}, not on {provider.name}.",
            'Pass --provider cpu, or install a driver and "fcn-deploy[gpu]".',
        )
    if provider.name != CPU and _tells_places():
        require_placed(session, provider.name, path)
    return session


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime from writing to standard error what it raises as well, or means nothing.

    Since 1.29 it warns at every session on CUDA that there is no plug-in of that name.
    """
    ort.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)  # its default: what it was cannot be asked


def _refusal(error: Exception, provider: Provider, path: Path) -> Exception:
    cause = cause_of(error)
    if is_out_of_memory(error):
        return DeviceMemoryError(
            f"{provider.name} has too little memory to load {path.name}.",
            "End what else uses that memory, or pass --provider cpu.",
        )
    if not provider.on_device or type(error).__name__ in _MODEL_FAULTS:
        return ModelError(f"ONNX Runtime refuses {path}: {cause}.")
    return DeviceError(
        f"{path.name} does not load on {provider.name}: {cause}.", "Pass --provider cpu."
    )


def require_placed(session: Any, provider: str, path: Path) -> None:
    """Refuse a session that computes convolutions elsewhere than was asked, which it may silently.

    Other nodes may be elsewhere: ONNX Runtime keeps the arithmetic of shapes on the CPU on purpose,
    and a rare operator without a kernel is no reason to do without the GPU. They are logged, since
    our own graphs have none of either.

    Args:
        session: Opened with the recording of places on.
        provider: In ONNX Runtime's spelling.
        path: Where the graph is from, for messages.

    Raises:
        DeviceError: A layer with weights is elsewhere.
    """
    elsewhere = Counter(
        (node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    )
    if not elsewhere:
        return
    places = ", ".join(f"{n} {kind} on {place}" for (kind, place), n in elsewhere.items())
    if any(kind in WEIGHTED for kind, _ in elsewhere):
        raise DeviceError(
            f"ONNX Runtime leaves layers of {path.name} out of {provider}: {places}.",
            "Update onnxruntime-gpu, or pass --provider cpu.",
        )
    log.warning("%s is not all on %s: %s.", path.name, provider, places)
