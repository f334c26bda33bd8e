"""The files of a run: where they lie, which is the newest, and how one is written whole.

A run folder holds everything made of one training::

    runs/road/
        train.json            settings and history of the training
        best.safetensors      weights and ModelSpec of the best epoch
        last.safetensors      the same of the last epoch, and what --resume needs
        curves.png
        model.onnx            uint8 image in; labels, logits and scores out
        model.fp16.onnx       the same, FP16 inside
        model.int8.onnx       the same, most of it INT8, for ONNX Runtime
        model.int8.tensorrt.onnx    the same, as TensorRT takes it
        model.fp16.plan       TensorRT engine, and its passport model.fp16.plan.json
        model.fp16.trunk.plan, model.fp16.head.plan    parts of that engine, for crops
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcn_deploy.errors import EngineError, EnvironmentFault, ModelError, UsageError

RUNS = Path("runs")
BEST = "best.safetensors"
LAST = "last.safetensors"
ONNX = "model.onnx"
ONNX_FP16 = "model.fp16.onnx"
ONNX_INT8 = {"ort": "model.int8.onnx", "tensorrt": "model.int8.tensorrt.onnx"}
TRAIN_RECORD = "train.json"

PARTS = ("trunk", "head")
"""Plans that are parts of an engine: ``NAME.trunk.plan`` belongs to ``NAME.plan``."""

SUFFIX_BACKEND = {".safetensors": "eager", ".onnx": "ort", ".plan": "trt"}
"""Which backend runs a file, by its suffix."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and move it there once it is complete.

    Whoever looks at ``path`` sees the old file or the whole new one, also after a crash: the data
    is flushed to disk before the rename, and the folder after it.

    Raises:
        EnvironmentFault: The folder cannot be made or written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp" + path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; artifacts get what the user's umask gives any new file.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Find out before the work that nothing could be written to a folder; nothing is made there.

    Raises:
        EnvironmentFault: The folder, or the nearest one above that exists, cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise _unwritable(folder, NotADirectoryError(f"{there} is a file"))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder, PermissionError(f"no permission to write to {there}"))


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all.

    Raises:
        EnvironmentFault: The folder cannot be made or written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    mend = "Free some space there" if full else "Make it writable"
    return EnvironmentFault(
        f"Cannot write {path}: {error.strerror or error}.",
        f"{mend}, or name another place with -o.",
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def newest_run(root: Path = RUNS) -> Path:
    """The run folder below ``root`` that was written to last.

    Raises:
        UsageError: There is none.
    """
    runs = [path.parent for suffix in SUFFIX_BACKEND for path in _whole(root, f"*/*{suffix}")]
    if not runs:
        raise UsageError(
            f"There is no run under {root}{os.sep}, and no model was named.",
            "Name a model file, or train one: fcn-deploy train DATA -o runs/NAME",
        )
    return max(set(runs), key=_last_write)


def _whole(folder: Path, pattern: str) -> list[Path]:
    # A killed atomic_path leaves its temporary file behind, dot and suffix and all.
    files = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    return [path for path in files if not is_part(path)]


def is_part(path: Path) -> bool:
    """Whether a file is a trunk or a head, which is nothing without its whole plan."""
    return path.suffix == ".plan" and path.stem.rpartition(".")[2] in PARTS


def _last_write(run: Path) -> int:
    return max(path.lstat().st_mtime_ns for path in run.iterdir())


def find_model(model: Path | None, *, suffixes: tuple[str, ...]) -> Path:
    """The model file meant by ``model``: a file, a run folder, or ``None`` for the newest run.

    Args:
        model: What the user named.
        suffixes: Acceptable kinds, the most wanted first. Of several files of a kind in a run
            folder the best checkpoint, the plain ONNX or the newest plan is taken.

    Raises:
        UsageError: Nothing was named and there is no run.
        ModelError: There is no such file, or the folder has none of these kinds; an EngineError
            where that is a plan, which can be built.
    """
    if model is not None and not model.exists():
        kind = EngineError if model.suffix == ".plan" else ModelError
        raise kind(f"There is no {model}.", "Name an existing model file or run folder.")
    if model is not None and model.is_file():
        return model
    run = newest_run() if model is None else model
    for suffix in suffixes:
        found = sorted(_whole(run, f"*{suffix}"), key=lambda path: path.stat().st_mtime_ns)
        preferred = [path for path in found if path.name in (BEST, ONNX)]
        if found:
            return (preferred or found)[-1]
    kinds = " or ".join(suffixes)
    kind = EngineError if suffixes == (".plan",) else ModelError
    raise kind(f"{run} holds no {kinds} file.", _remedy(suffixes[0]))


def _remedy(suffix: str) -> str:
    return {
        ".onnx": "Make one: fcn-deploy export",
        ".plan": "Make one: fcn-deploy build-engine --fp16",
    }.get(suffix, "Name a model file, or train one: fcn-deploy train DATA -o runs/NAME")
