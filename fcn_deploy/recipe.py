"""A deployment target: what an engine is built for, and how images are segmented there."""

from __future__ import annotations

from dataclasses import dataclass

from fcn_deploy.errors import ShapeError, UsageError

FLAVOURS = ("auto", "tensorrt", "rtx")
PRECISIONS = ("fp32", "fp16")
COMPATIBILITIES = ("none", "ampere-plus", "same-compute-capability")
LEVELS = range(6)


@dataclass(frozen=True)
class Shapes:
    """Crops that one optimization profile takes.

    Attributes:
        min_hw: Smallest height and width in pixels.
        opt_hw: The height and width that the engine is made fastest for.
        max_hw: Largest height and width; with ``max_batch`` it decides the memory that is needed.
        max_batch: Most crops in one call, and how many the trunk is made fastest for.
    """

    min_hw: tuple[int, int] = (32, 32)
    opt_hw: tuple[int, int] = (512, 512)
    max_hw: tuple[int, int] = (1024, 1024)
    max_batch: int = 4

    def check(self, step: int) -> None:
        """Refuse what no engine can be built for.

        Args:
            step: Output stride of the network, in pixels.

        Raises:
            ShapeError: Names the shape and what is wrong with it.
        """
        for name, hw in (("min", self.min_hw), ("opt", self.opt_hw), ("max", self.max_hw)):
            if min(hw) < step or any(size % step for size in hw):
                raise ShapeError(
                    f"--{name}-shape {hw[0]}x{hw[1]} is not a multiple of {step} pixels.",
                    "Heights and widths are multiples of the output stride of the network.",
                )
        for low, middle, high in zip(self.min_hw, self.opt_hw, self.max_hw, strict=True):
            if not low <= middle <= high:
                raise ShapeError(
                    f"The shapes are not in order: min {_x(self.min_hw)}, opt {_x(self.opt_hw)}, "
                    f"max {_x(self.max_hw)}.",
                    "Heights and widths must satisfy min <= opt <= max.",
                )
        if self.max_batch < 1:
            raise ShapeError(f"--max-batch {self.max_batch} is less than 1.")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        fp16: Compute in half precision after normalisation.
        flavour: ``tensorrt``, ``rtx``, or ``auto`` for what can build on this machine.
        profiles: One optimization profile each.
        targets: Compute capabilities, such as ``sm86``; empty for the flavour's own choice.
        workspace_mib: Most device memory that a layer may take while it runs; ``None``: the
            library's own limit, which is all there is.
        optimization_level: 0 (fastest build) to 5 (fastest engine); ``None``: the library's own.
        hardware_compatibility: ``none``; ``ampere-plus`` for any GPU from Ampere on;
            ``same-compute-capability`` for any of the same one. Each costs speed.
        version_compatible: Let later releases of the library load the plan, too.
        refit: Let weights be exchanged in the built engine.
        dla_core: Deep-learning accelerator to run on what it can (Orin); the GPU does the rest.
        timing_cache: Keep measurements of kernels from one build to the next.
    """

    fp16: bool = False
    flavour: str = "auto"
    profiles: tuple[Shapes, ...] = (Shapes(),)
    targets: tuple[str, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    refit: bool = False
    dla_core: int | None = None
    timing_cache: bool = True

    def check(self, step: int) -> None:
        """Refuse what no engine can be built for.

        Args:
            step: Output stride of the network, in pixels.

        Raises:
            ShapeError: Names the shape and what is wrong with it.
            UsageError: A value that is not one of those there are.
        """
        _one_of("flavour", self.flavour, FLAVOURS)
        _one_of("hardware compatibility", self.hardware_compatibility, COMPATIBILITIES)
        if not self.profiles:
            raise UsageError("An engine needs an optimization profile.")
        for shapes in self.profiles:
            shapes.check(step)
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"A workspace of {self.workspace_mib} MiB is none.")
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise UsageError(f"Optimization levels are 0 to 5, not {self.optimization_level}.")
        if self.dla_core is not None:
            self._check_dla(self.dla_core)

    def _check_dla(self, core: int) -> None:
        if core < 0:
            raise UsageError(f"There is no DLA core {core}.")
        if any(s.max_batch > 1 or len({s.min_hw, s.opt_hw, s.max_hw}) > 1 for s in self.profiles):
            raise UsageError(
                "A DLA runs one shape only: the smallest, best and largest must be the same.",
                "For example: --min-shape 512x512 --opt-shape 512x512 --max-shape 512x512 "
                "--max-batch 1",
            )


@dataclass(frozen=True)
class SegmentOptions:
    """How ``segment`` runs on the target; ``None`` where the command's own default is right.

    Attributes:
        backend: ``eager``, ``ort`` or ``trt``.
        provider: Execution provider of ONNX Runtime.
        tile: ``auto``, ``whole``, or a size such as ``512x512``.
        overlap: Pixels that neighbouring crops share.
        max_memory_mib: What ``auto`` may use.
    """

    backend: str | None = None
    provider: str | None = None
    tile: str | None = None
    overlap: int | None = None
    max_memory_mib: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A deployment target, as a TOML file describes it.

    Attributes:
        device: What the target is called.
        notes: What a person should know of it.
        engine: How its engine is built; ``None`` for devices that run the ONNX file instead.
        segment: How images are segmented there.
    """

    device: str
    notes: str = ""
    engine: EngineOptions | None = None
    segment: SegmentOptions = SegmentOptions()


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"There is no {what} {value!r}.", f"There are: {', '.join(known)}.")


def fit_shapes(
    low: tuple[int, int] | None, best: tuple[int, int] | None, high: tuple[int, int] | None
) -> dict[str, tuple[int, int]]:
    """Shapes of a profile of which some were named: the defaults give way to those.

    Args:
        low: Smallest height and width in pixels, or ``None``.
        best: The same of the one to be fastest at.
        high: The same of the largest.

    Returns:
        ``min_hw``, ``opt_hw`` and ``max_hw``; in order wherever the named ones are.
    """
    axes = []
    for axis in (0, 1):
        named = [hw[axis] for hw in (low, best, high) if hw is not None]
        least = low[axis] if low else min([Shapes.min_hw[axis], *named])
        most = high[axis] if high else max([Shapes.max_hw[axis], *named])
        axes.append(
            (least, best[axis] if best else max(least, min(Shapes.opt_hw[axis], most)), most)
        )
    (min_h, opt_h, max_h), (min_w, opt_w, max_w) = axes
    return {"min_hw": (min_h, min_w), "opt_hw": (opt_h, opt_w), "max_hw": (max_h, max_w)}


def _x(hw: tuple[int, int]) -> str:
    return f"{hw[0]}x{hw[1]}"
