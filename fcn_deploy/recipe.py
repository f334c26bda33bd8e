"""What an engine is built for: shapes, batch, precision, flavour and devices."""

from __future__ import annotations

from dataclasses import dataclass

from fcn_deploy.errors import ShapeError, UsageError

FLAVOURS = ("auto", "tensorrt", "rtx")


@dataclass(frozen=True)
class Recipe:
    """A deployment target.

    Attributes:
        fp16: Compute in half precision after normalisation.
        flavour: ``tensorrt``, ``rtx``, or ``auto`` for what can build on this machine.
        min_hw: Smallest height and width in pixels.
        opt_hw: The height and width that the engine is made fastest for.
        max_hw: Largest height and width; with ``max_batch`` it decides the memory that is needed.
        max_batch: Most crops in one call.
        targets: Compute capabilities, such as ``sm86``; empty for the flavour's own choice.
    """

    fp16: bool = False
    flavour: str = "auto"
    min_hw: tuple[int, int] = (32, 32)
    opt_hw: tuple[int, int] = (512, 512)
    max_hw: tuple[int, int] = (1024, 1024)
    max_batch: int = 4
    targets: tuple[str, ...] = ()

    def check(self, step: int) -> None:
        """Refuse what no engine can be built for.

        Args:
            step: Output stride of the network, in pixels.

        Raises:
            ShapeError: Names the shape and what is wrong with it.
            UsageError: There is no such flavour.
        """
        if self.flavour not in FLAVOURS:
            raise UsageError(
                f"There is no flavour {self.flavour!r}.", f"Flavours: {', '.join(FLAVOURS)}."
            )
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


def fit_shapes(
    low: tuple[int, int] | None, best: tuple[int, int] | None, high: tuple[int, int] | None
) -> dict[str, tuple[int, int]]:
    """Shapes of a recipe of which some were named: the defaults give way to those.

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
        least = low[axis] if low else min([Recipe.min_hw[axis], *named])
        most = high[axis] if high else max([Recipe.max_hw[axis], *named])
        axes.append(
            (least, best[axis] if best else max(least, min(Recipe.opt_hw[axis], most)), most)
        )
    (min_h, opt_h, max_h), (min_w, opt_w, max_w) = axes
    return {"min_hw": (min_h, min_w), "opt_hw": (opt_h, opt_w), "max_hw": (max_h, max_w)}


def _x(hw: tuple[int, int]) -> str:
    return f"{hw[0]}x{hw[1]}"
