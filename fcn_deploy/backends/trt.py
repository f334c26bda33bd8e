"""TensorRT and TensorRT-RTX: loads a plan after its passport, runs it through cuda-bindings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import Footprint
from fcn_deploy.backends import ShapeLimits, check_finite
from fcn_deploy.backends.tensorrt_flavour import (
    Flavour,
    device_capability,
    import_flavour,
    require_gpu,
)
from fcn_deploy.errors import DeviceError, ModelError, UsageError
from fcn_deploy.passport import REBUILD, Passport, read_passport
from fcn_deploy.spec import INPUT

_TYPES = {"labels": np.uint8, "logits": np.float32, "scores": np.float32}


class _Cuda:
    """CUDA's runtime API with errors as exceptions, and one growing buffer per tensor."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.stream = self.call(api.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> (address, bytes)

    def call(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status):
            reason = self.api.cudaGetErrorString(status)[1].decode()
            raise DeviceError(
                f"The GPU reports: {reason}.",
                "If memory is short, pass a smaller --tile or build with a smaller --max-batch.",
            )
        return values[0] if values else None

    def buffer(self, name: str, size: int) -> int:
        """Address of at least ``size`` bytes; valid until a larger one is asked for."""
        address, there = self._buffers.get(name, (0, 0))
        if there < size:
            if address:
                self.call(self.api.cudaFree(address))
                del self._buffers[name]
            address = int(self.call(self.api.cudaMalloc(size)))
            self._buffers[name] = (address, size)
        return address

    def upload(self, address: int, array: NDArray[Any]) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call(
            self.api.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream)
        )

    def download(self, array: NDArray[Any], address: int) -> None:
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call(
            self.api.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.stream)
        )

    def synchronise(self) -> None:
        self.call(self.api.cudaStreamSynchronize(self.stream))

    def close(self) -> None:
        for address, _ in self._buffers.values():
            self.api.cudaFree(address)
        self._buffers.clear()
        if self.stream is not None:
            self.api.cudaStreamDestroy(self.stream)
            self.stream = None


class TrtBackend:
    """An engine on one GPU; see the Backend protocol."""

    name = "trt"
    upsampling = None  # a plan does not give its weights back
    labels_on_device = True
    footprint = Footprint(bytes_per_pixel=0)  # taken when the engine was loaded

    def __init__(self, path: Path, passport: Passport, flavour: Flavour, api: Any) -> None:
        self.spec = passport.spec
        self.precision = passport.precision.computes
        low, best, high = passport.profile.min, passport.profile.opt, passport.profile.max
        self.limits = ShapeLimits(high[0], low[1:], best[1:], high[1:], passport.spec.output_stride)
        self.provider = f"{flavour.name} {flavour.version}"
        self.halo = passport.halo
        self._path = path
        self._flavour = flavour
        self._cuda = _Cuda(api)
        # The runtime outlives the engine, and the engine its context: keep all three.
        self._runtime = flavour.trt.Runtime(flavour.logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ModelError(f"{path} does not load: {flavour.first_error}.", REBUILD)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(
                f"{path} loads, but cannot run: {flavour.first_error}.",
                "If memory is short, build with a smaller --max-shape or --max-batch.",
            )
        self._outputs = [
            name
            for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors))
            if self._engine.get_tensor_mode(name) == flavour.trt.TensorIOMode.OUTPUT
        ]

    def _run(self, wanted: str, crops: NDArray[np.uint8]) -> NDArray[Any]:
        self.limits.check(crops.shape)
        if wanted not in self._outputs:
            raise ModelError(f"{self._path} has no output {wanted!r}, which this needs.", REBUILD)
        crops = np.ascontiguousarray(crops)
        if not self._context.set_input_shape(INPUT, crops.shape):
            raise ModelError(f"{self._path} refuses crops of {crops.shape}.", REBUILD)
        results = {name: np.empty(self._shape(name, crops), _TYPES[name]) for name in self._outputs}
        cuda = self._cuda
        address = cuda.buffer(INPUT, crops.nbytes)
        cuda.upload(address, crops)
        self._context.set_tensor_address(INPUT, address)
        for name, result in results.items():
            self._context.set_tensor_address(name, cuda.buffer(name, result.nbytes))
        if not self._context.execute_async_v3(int(cuda.stream)):
            raise DeviceError(f"{self._path} failed to run: {self._flavour.first_error}.")
        # Only what is wanted comes back: logits are 80 times the size of labels.
        for name in {wanted, "scores"} & results.keys():
            cuda.download(results[name], cuda.buffer(name, results[name].nbytes))
        cuda.synchronise()
        if "scores" in results:
            check_finite(results["scores"], f"TensorRT with {self._path.name}")
        return results[wanted]

    def _shape(self, output: str, crops: NDArray[np.uint8]) -> tuple[int, ...]:
        batch, height, width = crops.shape[:3]
        if output == "labels":
            return batch, height, width
        stride = self.spec.score_stride if output == "scores" else 1
        return batch, self.spec.num_classes, height // stride, width // stride

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Most likely class per pixel: uint8 (N, H, W)."""
        if "labels" not in self._outputs and "logits" in self._outputs:
            return np.asarray(self.logits(crops).argmax(1), np.uint8)
        return self._run("labels", crops)

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel: float32 (N, C, H, W)."""
        return self._run("logits", crops)

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What enters the last transposed convolution: float32 (N, C, H/s, W/s)."""
        return self._run("scores", crops)

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Scores (C, H/s, W/s) of each crop (H, W, 3), in order, in batches of one shape."""
        rest, size = iter(crops), self.limits.max_batch or 1
        while chunk := list(islice(rest, size)):
            # Another shape would make the engine choose other kernels.
            filled = chunk + chunk[-1:] * (size - len(chunk))
            yield from self.scores(np.stack(filled))[: len(chunk)]

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_trt(path: Path, provider: str = "auto") -> TrtBackend:
    """Load a plan: first its passport, then the GPU, and only then the native parser.

    Args:
        path: A file of ``fcn-deploy build-engine``, its passport beside it.
        provider: ``auto`` or ``cuda``; engines run nowhere else.

    Raises:
        ModelError: The plan is damaged, foreign, or of another version.
        DeviceError: There is no GPU, or the engine does not run on it.
        MissingExtraError: The flavour it was built with is not installed.
    """
    if provider not in ("auto", "cuda"):
        raise UsageError(f"TensorRT engines run on a GPU, not on {provider!r}.")
    passport = read_passport(path)
    api = require_gpu()
    flavour = import_flavour(passport.flavour)
    if flavour.version != passport.version:
        raise ModelError(
            f"{path} was built by {passport.flavour} {passport.version}, "
            f"this machine has {flavour.version}.",
            REBUILD,
        )
    device = device_capability(api)
    if passport.targets != ("portable",) and device not in passport.targets:
        raise ModelError(
            f"{path} was built for {', '.join(passport.targets)}, this GPU is {device}.", REBUILD
        )
    return TrtBackend(path, passport, flavour, api)
