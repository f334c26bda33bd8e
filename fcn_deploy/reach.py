"""How far a network looks, worked out layer by layer: whole numbers only, whatever the framework.

A crop whose border of that width is dropped predicts what the whole image would have predicted.

Source: the recurrences of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional
Neural Networks", Distill 2019; extended here to transposed convolutions, where the outputs that lie
between two inputs do not all see the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from fcn_deploy.errors import ModelError

MOST = 1024
"""Of a kernel, a stride or a period; a file beyond it was made to keep us busy."""


@dataclass(frozen=True)
class Dependence:
    """The pixels that each index of a tensor depends on, along one axis.

    Index o depends on the pixels ``first[o % P] + o // P * advance`` and ``last[o % P] + o // P *
    advance`` and on none outside of them, where P is the length of both. P is 1 but behind a
    transposed convolution. Nothing is lost on the way: the ends of a union are ends of its parts.

    Attributes:
        first: The lowest pixel, one for each phase; below 0 where an index sees padding.
        last: The highest pixel, likewise.
        advance: Pixels from one period of P indices to the next.
    """

    first: tuple[int, ...] = (0,)
    last: tuple[int, ...] = (0,)
    advance: int = 1

    @property
    def stride(self) -> Fraction:
        """Pixels from one index to the next."""
        return Fraction(self.advance, len(self.first))

    def range_of(self, indices: Iterable[int]) -> tuple[int, int]:
        """The lowest and the highest pixel that some indices depend on."""
        period = len(self.first)
        places = [(index % period, index // period * self.advance) for index in indices]
        lowest = min(self.first[phase] + start for phase, start in places)
        return lowest, max(self.last[phase] + start for phase, start in places)

    def window(self, kernel: int, stride: int, dilation: int, begin: int) -> Dependence:
        """Behind a convolution or a pooling: output o sees the inputs o * stride - begin + j * d.

        Args:
            kernel: Number of inputs j that an output sees.
            stride: Inputs from one output to the next.
            dilation: Inputs d from one j to the next.
            begin: Padding before the first input; what lies behind the last changes nothing.
        """
        period = len(self.first)
        # Whole periods further inside, the same phases come again, and reach less far.
        seen = {*range(min(kernel, period)), *range(max(0, kernel - period), kernel)}
        outputs = math.lcm(period, stride) // stride
        ranges = [
            self.range_of(output * stride - begin + j * dilation for j in seen)
            for output in range(outputs)
        ]
        return _periodic(ranges, self.advance * (outputs * stride // period))

    def transposed(
        self, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
    ) -> Dependence:
        """Behind a transposed convolution: o sees i where o = i * stride - pads[0] + j * dilation.

        Args:
            kernel: Number of outputs j that an input reaches.
            stride: Outputs from one input to the next.
            dilation: Outputs d from one j to the next.
            pads: Outputs cut off at the begin and at the end, less ``output_padding``.

        Raises:
            ValueError: Some outputs see nothing; or more is cut off than outputs that see padding,
                so that those beyond the border of a crop would depend on pixels inside alone.
        """
        period = len(self.first) * stride
        _require_small(period)

        def seen(output: int) -> list[int]:
            reached = (output + pads[0] - j * dilation for j in range(kernel))
            return [place // stride for place in reached if place % stride == 0]

        # Sizes cancel out: of an input without elements, the outputs end where these begin.
        end = (kernel - 1) * dilation + 1 - stride - sum(pads)
        if not all(seen(output) for output in range(stride)):
            raise ValueError("some of its outputs see no input")
        if any(min(seen(output)) >= 0 for output in range(-stride, 0)) or any(
            max(seen(output)) < 0 for output in range(end, end + stride)
        ):
            raise ValueError("it cuts off outputs that see no padding")
        return _periodic([self.range_of(seen(o)) for o in range(period)], self.advance)

    def resized(self, factor: int, mode: str) -> Dependence:
        """Behind a resize to a whole multiple, aligned at the borders of pixels.

        Args:
            factor: Outputs to each input.
            mode: ``linear``, which is a transposed convolution but for the border of the image; or
                ``nearest``.
        """
        if mode == "nearest":
            return self.transposed(factor, factor, 1, (0, 0))
        # An odd factor has outputs in the middle of an input, which see no other.
        half = factor // 2
        return self.transposed(factor + 2 * half, factor, 1, (half, half))

    def union(self, other: Dependence) -> Dependence:
        """Where two tensors are added, or stacked along their channels.

        Raises:
            ValueError: Their strides differ.
        """
        if self.stride != other.stride:
            raise ValueError(f"its inputs have the strides {self.stride} and {other.stride}")
        period = math.lcm(len(self.first), len(other.first))
        _require_small(period)
        both = [(self.range_of([index]), other.range_of([index])) for index in range(period)]
        ranges = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in both]
        return _periodic(ranges, self.advance * (period // len(self.first)))


def _periodic(ranges: list[tuple[int, int]], advance: int) -> Dependence:
    first, last = zip(*ranges, strict=True)
    return Dependence(first, last, advance)


def _require_small(number: int) -> None:
    if not 1 <= number <= MOST:
        raise ValueError(f"it has a size of {number}")


@dataclass(frozen=True)
class Reach:
    """The pixels that the scores of a network look at, along rows and along columns.

    Score i of stride s depends on the pixels from ``i * s - before`` to ``i * s + after``, both
    included, and on no other; some score on these two.
    """

    rows: Dependence
    columns: Dependence

    @property
    def before(self) -> int:
        """Pixels above or left of the first pixel that a score covers, at most."""
        return max(
            math.ceil(phase * axis.stride) - pixel
            for axis in (self.rows, self.columns)
            for phase, pixel in enumerate(axis.first)
        )

    @property
    def after(self) -> int:
        """Pixels below or right of that same first pixel, at most; s - 1 of them are covered."""
        return max(
            pixel - math.floor(phase * axis.stride)
            for axis in (self.rows, self.columns)
            for phase, pixel in enumerate(axis.last)
        )


def require_stride(reach: Reach, score_stride: int) -> Reach:
    """The same reach, if the scores have the stride that their description says.

    Raises:
        ModelError: They have not.
    """
    for axis in (reach.rows, reach.columns):
        if axis.stride != score_stride:
            raise ModelError(
                f"The scores have stride {axis.stride}, and their description says {score_stride}.",
                "Export the model again: fcn-deploy export",
            )
    return reach


def halo_for(reach: Reach, score_stride: int, step: int, *, around: int = 1) -> int:
    """Pixels to drop at each inner side of a crop, so that the rest is as in the whole image.

    Kept pixels [y0, y1) on the grid of scores are upsampled (kernel 2s, stride s, padding s/2)
    from the scores y0/s - 1 to y1/s; all of these must look at pixels inside the crop only. This is
    often less than ``before`` and ``after`` suggest: the scores of finer heads that look farthest
    are not those next to the border.

    Args:
        reach: Of a network.
        score_stride: Pixels from one score to the next.
        step: Starts and sizes of crops are multiples of it, in pixels.
        around: Scores beyond the kept ones that these are upsampled from; 0 of logits, which are
            their own scores, of stride 1.

    Returns:
        The least multiple of ``score_stride`` that is enough, at least ``around`` times.

    Raises:
        ModelError: Crops on multiples of ``step`` do not lie on the network's own grid.
    """
    if any(step % axis.advance for axis in (reach.rows, reach.columns)):
        raise ModelError(
            f"The network's grid has {reach.rows.advance}x{reach.columns.advance} pixels, which do "
            f"not divide the output stride {step}.",
            "Export the model again: fcn-deploy export",
        )
    return score_stride * max(_dropped(axis, around) for axis in (reach.rows, reach.columns))


def _dropped(axis: Dependence, around: int) -> int:
    """Scores to drop at each side."""
    period, count = len(axis.first), around
    for phase, (first, last) in enumerate(zip(axis.first, axis.last, strict=True)):
        # Of this phase, the farthest score inside that still looks out of the crop: of those that
        # are counted from its begin, and of those counted from its end, where phases are the same.
        begin = phase - (first // axis.advance + 1) * period
        end = phase - last // axis.advance * period
        count = max(count, begin + 1 + around, around - end)
    return count
