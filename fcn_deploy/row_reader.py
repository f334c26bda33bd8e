"""Large PNG and TIFF files, read from the top in windows: memory grows with the window alone.

Pillow reads a file whole or not at all. So each piece of a file, some strips or tiles or
scanlines, is dressed up as a small file of its own and given to Pillow: the pixels are those of
:func:`~fcn_deploy.image.read_image`, bit for bit, whatever the compression and the pixel type.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.errors import InputError

PIECE_PIXELS = 1 << 21
"""Pixels decoded at once, unless one strip or tile has more."""

Decode = Callable[[int, int], NDArray[np.uint8]]


class RowReader:
    """An open image of which windows of rows are read, from the top to the bottom.

    May be opened in one thread and read in another, though not in two at once.

    Args:
        path: The file, for messages.
        image_hw: Size in pixels.
        step: Rows that are decoded at once.
        decode: Rows ``[start, stop)`` of the file as RGB; called in order, each row once.
        close: Called once, at the end.
    """

    def __init__(
        self,
        path: Path,
        image_hw: tuple[int, int],
        step: int,
        decode: Decode,
        close: Callable[[], None],
    ) -> None:
        self._path = path
        self.image_hw = image_hw
        self._step = step
        self._decode = decode
        self._close = close
        self._next = 0
        self._decoded = 0
        self._held = np.empty((0, image_hw[1], 3), np.uint8)

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read rows ``[start, stop)`` as RGB uint8 (stop - start, W, 3).

        A window begins where the last one ended. The caller owns the array.

        Raises:
            InputError: The file is damaged or ends too early.
        """
        height, width = self.image_hw
        if start != self._next or not start < stop <= height:
            raise ValueError(f"rows {start}:{stop} of {height} after row {self._next}")
        rows = np.empty((stop - start, width, 3), np.uint8)
        while self._next < stop:
            if not len(self._held):
                end = min(self._decoded + self._step, height)
                try:
                    self._held = self._decode(self._decoded, end)
                except OSError as error:  # of the disk; whoever writes would take it for its own
                    raise InputError(f"{self._path} cannot be read: {error}.") from error
                self._decoded = end
            count = min(len(self._held), stop - self._next)
            rows[self._next - start : self._next - start + count] = self._held[:count]
            self._held = self._held[count:]
            self._next += count
        return rows

    def close(self) -> None:
        """Close the file; reading is over."""
        self._held = self._held[:0].copy()
        self._close()

    def __enter__(self) -> RowReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def decode_rgb(path: Path, content: bytes) -> tuple[NDArray[np.uint8], Image.Image]:
    """Decode a small image file as :func:`~fcn_deploy.image.read_image` would.

    Returns:
        RGB uint8 (H, W, 3), and the image in its own mode.

    Raises:
        InputError: ``path``, of which ``content`` is a piece, is damaged.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "TIFF"))
        image.load()
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError and more
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read: {cause}.") from error
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2), image
    return np.asarray(image.convert("RGB")), image
