"""TensorRT and TensorRT-RTX: an engine after its passport, run through cuda-bindings."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import Footprint
from fcn_deploy.backends import ShapeLimits, check_finite
from fcn_deploy.backends.cuda import Cuda
from fcn_deploy.backends.tensorrt_flavour import (
    Flavour,
    device_capability,
    import_flavour,
    require_gpu,
)
from fcn_deploy.backends.trt_engine import Engine
from fcn_deploy.backends.trt_fit import require_fitting
from fcn_deploy.backends.trt_head import EngineUpsampler
from fcn_deploy.backends.trt_lane import Lane
from fcn_deploy.engine_files import passport_path, read_engine
from fcn_deploy.errors import DeviceMemoryError, EngineError, UsageError
from fcn_deploy.onnx_parts import read_upsampling
from fcn_deploy.passport import HEAD, TRUNK, UPSAMPLING, WHOLE, Passport, Profile
from fcn_deploy.trusted_plan import trusted_engine
from fcn_deploy.upsample import Upsampling

log = logging.getLogger("fcn_deploy")


class TrtBackend:
    """An engine on one GPU; see the Backend protocol.

    Args:
        path: The whole plan.
        passport: What is known of it.
        contents: Bytes of its parts, by role.
        flavour: The library that built it.
        cuda: The device.
        graphs: Launch recorded runs; see :class:`~fcn_deploy.backends.trt_lane.Lane`.
        cache: Folder for what RTX compiles here, as native code as the plan; ``None``: keep none.
    """

    name = "trt"
    labels_on_device = True
    footprint = Footprint(bytes_per_pixel=0)  # of the device, which bounds itself by profiles

    def __init__(
        self,
        path: Path,
        passport: Passport,
        contents: Mapping[str, bytes],
        flavour: Flavour,
        cuda: Cuda,
        *,
        graphs: bool = True,
        cache: Path | None = None,
    ) -> None:
        self.spec = passport.spec
        self.precision = passport.precision.computes
        self.provider = f"{flavour.name} {flavour.version}"
        self.halo = passport.halo
        self.upsampling: EngineUpsampler | None = None
        self._host: Upsampling | None = None
        self._path, self._passport, self._flavour, self._cuda = path, passport, flavour, cuda
        self._graphs, self._depth, self._cache = graphs, 2, cache
        self._engines: dict[str, Engine] = {}
        self._lanes: dict[str, list[Lane]] = {}
        try:
            for role in (WHOLE, TRUNK):
                if role in contents:
                    self._engines[role] = self._load(role, contents[role])
            if {TRUNK, HEAD, UPSAMPLING} <= set(contents):
                self._host = read_upsampling(
                    contents[UPSAMPLING], self.spec.num_classes, passport.border
                )
                head = self._load(HEAD, contents[HEAD])
                self.upsampling = EngineUpsampler(head, self._host, graphs=graphs)
            self._lanes[WHOLE] = [Lane(self._engines[WHOLE], graphs=graphs)]
        except BaseException:
            self.close()
            raise
        self.limits = _limits(self._engines[WHOLE].profiles, self.spec.output_stride)
        self._batch = self.limits.max_batch or 1

    def _load(self, role: str, plan: bytes) -> Engine:
        name = self._path.name if role == WHOLE else f"the {role} of {self._path.name}"
        return Engine(
            self._flavour,
            self._cuda,
            plan,
            name,
            jit_cache=None if self._cache is None else self._kernels(self._cache, role),
            version_compatible=self._passport.options.version_compatible,
        )

    def _kernels(self, cache: Path, role: str) -> Path:
        # Not beside the plan: a folder that somebody sent may hold such a file, too, and no
        # passport speaks of it.
        digest = self._passport.parts[role].sha256[:32]
        return cache / "kernels" / f"{digest}-{device_capability(self._cuda.api)}.bin"

    def _run(self, role: str, crops: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        self.limits.check(crops.shape)
        parts: list[dict[str, NDArray[Any]]] = []
        batch = list(crops)
        while batch:
            lane, some = self._lanes_of(role, 1)[0], batch[: self._batch]
            try:
                lane.start(some)
            except DeviceMemoryError as error:
                self._shrink(len(some), error)
                continue
            parts.append(lane.finish())
            batch = batch[len(some) :]
        results = parts[0]
        if len(parts) > 1:
            results = {name: np.concatenate([p[name] for p in parts]) for name in results}
        for name in {"scores", "logits"} & results.keys():
            check_finite(results[name], f"TensorRT with {self._path.name}")
        return results

    def _lanes_of(self, role: str, count: int) -> list[Lane]:
        lanes = self._lanes.setdefault(role, [])
        while len(lanes) < count:
            lanes.append(Lane(self._engines[role], graphs=self._graphs))
        return lanes[:count]

    def _shrink(self, batch: int, error: DeviceMemoryError) -> None:
        """Answer a full device by less at once from now on, and say so; or give up."""
        for lane in (lane for lanes in self._lanes.values() for lane in lanes):
            lane.release()
        if batch > 1:
            self._batch = batch // 2
            action = f"going on with {self._batch} at once"
        elif self._depth > 1:
            self._depth = 1
            action = "copies no longer run beside computation"
        else:
            raise error
        log.warning("%s, too little for %d crops at once: %s.", error.problem, batch, action)

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Most likely class per pixel: uint8 (N, H, W)."""
        results = self._run(WHOLE, crops)
        if "labels" not in results:
            return np.asarray(self.logits(crops).argmax(1), np.uint8)
        return results["labels"]

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel: float32 (N, C, H, W); upsampled on the host."""
        if self._host is not None:
            return np.stack([self._host.whole(scores) for scores in self.scores(crops)])
        return self._wanted("logits", crops)

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What enters the last transposed convolution: float32 (N, C, H/s, W/s)."""
        if TRUNK in self._engines:
            return np.asarray(self._run(TRUNK, crops)["scores"], np.float32)
        return self._wanted("scores", crops)

    def _wanted(self, output: str, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        results = self._run(WHOLE, crops)
        if output not in results:
            raise EngineError(
                f"{self._path} has no output {output!r}, which this needs.",
                "Build it again from a file with labels, logits and scores: fcn-deploy export",
            )
        return np.asarray(results[output], np.float32)

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Scores (C, H/s, W/s) of each crop (H, W, 3), in order.

        Two batches are under way: one is computed while the next one is read, cut and copied.
        """
        if TRUNK not in self._engines:
            yield from self._one_by_one(crops)
            return
        source, again = iter(crops), deque[NDArray[np.uint8]]()
        waiting: deque[Lane] = deque()
        number = 0
        try:
            while True:
                batch = [again.popleft() for _ in range(min(self._batch, len(again)))]
                batch += islice(source, self._batch - len(batch))
                if not batch:
                    break
                self.limits.check((len(batch), *batch[0].shape))
                if len(waiting) == self._depth:
                    yield from self._scores_of(waiting.popleft())
                lane = self._lanes_of(TRUNK, self._depth)[number % self._depth]
                try:
                    lane.start(batch)
                except DeviceMemoryError as error:
                    again.extendleft(reversed(batch))
                    while waiting:
                        yield from self._scores_of(waiting.popleft())
                    self._shrink(len(batch), error)
                    number = 0
                    continue
                waiting.append(lane)
                number += 1
            while waiting:
                yield from self._scores_of(waiting.popleft())
        finally:
            for lane in waiting:  # whoever gives up leaves lanes that others can use
                lane.abandon()

    def _scores_of(self, lane: Lane) -> list[NDArray[np.float32]]:
        scores = np.asarray(lane.finish()["scores"], np.float32)
        check_finite(scores, f"TensorRT with {self._path.name}")
        return list(scores)

    def _one_by_one(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        rest = iter(crops)
        while batch := list(islice(rest, self._batch)):
            yield from self.scores(np.stack(batch))

    def close(self) -> None:
        """Give the GPU's memory back."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.close()
        self._lanes.clear()
        if self.upsampling is not None:
            self.upsampling.close()
        for engine in self._engines.values():
            engine.close()

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _limits(profiles: tuple[Profile, ...], step: int) -> ShapeLimits:
    first, *others = (
        ShapeLimits(p.max[0], p.min[1:], p.opt[1:], p.max[1:], step) for p in profiles
    )
    return replace(first, others=tuple(others))


def open_trt(
    path: Path,
    provider: str = "auto",
    *,
    trust_engine: bool = False,
    cache: Path | None = None,
) -> TrtBackend:
    """Load an engine: first its passport, then the GPU, and only then the native parser.

    Args:
        path: A file of ``fcn-deploy build-engine``, its passport beside it.
        provider: ``auto`` or ``cuda``; engines run nowhere else.
        trust_engine: Load a plan that has no passport, too. A plan is native code: only where you
            know who built it.
        cache: Folder of the user's own for what RTX compiles here; ``None``: keep none.

    Raises:
        ModelError: The engine is damaged, foreign, or of another version.
        DeviceError: There is no GPU, or the engine does not run on it.
        MissingExtraError: The flavour it was built with is not installed.
    """
    if provider not in ("auto", "cuda"):
        raise UsageError(f"TensorRT engines run on a GPU, not on {provider!r}.")
    if trust_engine and not passport_path(path).is_file():
        passport, contents = trusted_engine(path)
    else:
        passport, contents = read_engine(path)
    api = require_gpu()
    flavour = import_flavour(passport.flavour)
    require_fitting(path, passport, flavour.version, device_capability(api))
    return TrtBackend(path, passport, contents, flavour, Cuda(api), cache=cache)
