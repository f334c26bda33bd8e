"""PNG read from the top: inflated piece by piece, each piece unfiltered by Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.errors import InputError
from fcn_deploy.row_reader import PIECE_PIXELS, RowReader, decode_rgb

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BYTES_PER_PIXEL = {(8, 0): 1, (8, 2): 3, (8, 3): 1, (8, 4): 2, (8, 6): 4, (16, 0): 2}
"""By depth and colour type: those whose rows Pillow gives back unchanged.

Of 16-bit colours it keeps one byte; the filters of the row below need both.
"""
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"eXIf")
_READ = 1 << 20


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    checksum = zlib.crc32(content, zlib.crc32(name))
    return b"".join((struct.pack(">I", len(content)), name, content, struct.pack(">I", checksum)))


def open_png(path: Path, image: Image.Image) -> RowReader | None:
    """Open a PNG to be read in windows, or ``None`` where that is not possible.

    Args:
        path: The file.
        image: The same file, opened with Pillow.
    """
    file = path.open("rb")
    try:
        header, palette, text, data = _survey(file)
        width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
        size = BYTES_PER_PIXEL.get((depth, kind))
        turned = _orientation(text) != 1
        if size is None or interlaced or turned or getattr(image, "is_animated", False):
            file.close()
            return None
    except (struct.error, OSError, ValueError):  # read_image has the words for it
        file.close()
        return None
    scanlines = _Scanlines(path, file, data, (header, palette))
    step = max(1, PIECE_PIXELS // width)
    return RowReader(path, (height, width), step, scanlines.decode, file.close)


def _survey(file: BinaryIO) -> tuple[bytes, bytes, list[bytes], int]:
    """Header, palette chunk, chunks that may tell the orientation, and where the pixels begin.

    Chunks are read to the end of the file, since the orientation may come after the pixels.
    """
    header, palette, text, data = b"", b"", [], 0
    file.seek(len(SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT" and not data:
            data = file.tell() - 8
        if name in (b"IHDR", b"PLTE", *_TEXT):
            content = file.read(length)
            if name == b"IHDR":
                header = content
            elif name == b"PLTE" and not data:
                palette = chunk(name, content)
            elif name in _TEXT:
                text.append(chunk(name, content))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return header, palette, text, data


def _orientation(text: list[bytes]) -> int:
    # Asked of one pixel: of a PNG Pillow decodes all before it looks for what follows them.
    if not text:
        return 1
    pixel = chunk(b"IHDR", struct.pack(">II", 1, 1) + b"\x08\0\0\0\0")
    parts = (SIGNATURE, pixel, *text, chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b""))
    with Image.open(io.BytesIO(b"".join(parts)), formats=("PNG",)) as image:
        try:
            return int(image.getexif().get(0x0112, 1))
        except Exception:  # a broken block does not spoil the picture; read_image knows
            return 0


class _Scanlines:
    """The compressed rows of a PNG file.

    Args:
        path: For messages.
        file: The same file, open; stays open.
        data: Where the first chunk of pixels begins.
        head: Content of the header, and the palette chunk or nothing.
    """

    def __init__(self, path: Path, file: BinaryIO, data: int, head: tuple[bytes, bytes]) -> None:
        self._path = path
        self._file = file
        self._header, self._palette = head
        width, _, depth, kind = struct.unpack(">IIBB", head[0][:10])
        self._row_bytes = 1 + width * BYTES_PER_PIXEL[depth, kind]
        self._width = width
        self._above = b""
        self._inflate = zlib.decompressobj()
        file.seek(data)
        self._compressed = self._chunks()

    def decode(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The next rows as RGB (stop - start, W, 3)."""
        filtered = self._inflated((stop - start) * self._row_bytes)
        # Filters refer to the row above: it comes along, unfiltered (type 0).
        above = b"\0" + self._above if start else b""
        rows = stop - start + bool(start)
        content = (
            SIGNATURE,
            chunk(b"IHDR", struct.pack(">II", self._width, rows) + self._header[8:]),
            self._palette,
            chunk(b"IDAT", zlib.compress(above + filtered, 0)),
            chunk(b"IEND", b""),
        )
        rgb, image = decode_rgb(self._path, b"".join(content))
        last = np.asarray(image.crop((0, rows - 1, self._width, rows)))
        self._above = (last.astype(">u2") if last.dtype.itemsize == 2 else last).tobytes()
        return rgb[-(stop - start) :]

    def _inflated(self, size: int) -> bytes:
        parts = []
        try:
            while size:
                pending = self._inflate.unconsumed_tail or next(self._compressed, b"")
                parts.append(self._inflate.decompress(pending, size))
                size -= len(parts[-1])
                if size and (self._inflate.eof or not (pending or parts[-1])):
                    raise InputError(f"{self._path} holds fewer rows of pixels than it declares.")
        except zlib.error as error:
            raise InputError(f"{self._path} is damaged: {error}.") from error
        return b"".join(parts)

    def _chunks(self) -> Iterator[bytes]:
        """Compressed data, in pieces: a chunk may be as large as the file."""
        while len(head := self._file.read(8)) == 8:
            left, name = struct.unpack(">I4s", head)
            if name != b"IDAT":
                return
            checksum = zlib.crc32(name)
            while left:
                piece = self._file.read(min(left, _READ))
                if not piece:
                    return
                checksum, left = zlib.crc32(piece, checksum), left - len(piece)
                if left == 0 and self._file.read(4) not in (struct.pack(">I", checksum), b""):
                    raise InputError(f"{self._path} is damaged: wrong checksum.")
                yield piece
