"""Which model files take part, under what name, and how each is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fcn_deploy.artifacts import BEST, RUNS, SUFFIX_BACKEND, is_part, newest_run
from fcn_deploy.backends import Backend, open_backend
from fcn_deploy.engine_files import read_passport
from fcn_deploy.errors import FcnDeployError, ModelError, UsageError
from fcn_deploy.freshness import require_fresh

Kind = Literal["eager", "compiled", "ort", "trt"]

EAGER, COMPILED = "eager PyTorch", "torch.compile"
_ORDER: tuple[Kind, ...] = ("eager", "compiled", "ort", "trt")
_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Contender:
    """A model file and what is to run it.

    Attributes:
        path: The file.
        kind: What runs it.
        named: Whether the user named it: then it must work.
    """

    path: Path
    kind: Kind
    named: bool

    def open(
        self, provider: str = "auto", *, trust_engine: bool = False, cache: Path | None = None
    ) -> Backend:
        """Load it.

        Raises:
            FcnDeployError: It is not usable, or cannot run here.
        """
        if not self.named:
            require_fresh(self.path)
        if self.kind in ("eager", "compiled"):
            device = provider if provider in ("auto", "cpu") else "cuda"
            if self.kind == "eager":
                return open_backend(self.path, "eager", device)
            from fcn_deploy.backends.compiled import open_compiled

            return open_compiled(self.path, device)
        return open_backend(self.path, self.kind, provider, trust_engine=trust_engine, cache=cache)

    def name(self, backend: Backend | None) -> str:
        """What to call it; ``backend`` is ``None`` where it could not be loaded."""
        if self.kind == "eager":
            return EAGER
        if self.kind == "compiled":
            return COMPILED
        if self.kind == "ort":
            known = _precision_of_name(self.path) if backend is None else backend.precision
            return f"ONNX Runtime {known}"
        flavour, precision = _engine(self.path, backend)
        return f"{'TensorRT-RTX' if flavour == 'rtx' else 'TensorRT'} {precision}"


def _engine(path: Path, backend: Backend | None) -> tuple[str, str]:
    if backend is not None:
        return backend.provider.partition(" ")[0], backend.precision
    try:
        passport = read_passport(path)
    except FcnDeployError:
        return "tensorrt", _precision_of_name(path)
    return passport.flavour, passport.precision.computes


def _precision_of_name(path: Path) -> str:
    return next((p for p in _PRECISIONS if p in path.name.lower().split(".")), "fp32")


def find_contenders(
    artifacts: Sequence[Path], *, compiled: bool = True, root: Path = RUNS
) -> tuple[list[Contender], list[str]]:
    """The files that are meant, in the order to be shown in, the references first.

    Args:
        artifacts: Files or run folders that the user named; none for the newest run.
        compiled: Whether ``torch.compile`` takes part.
        root: Where runs lie.

    Returns:
        Contenders, and what a reader must know of the choice.

    Raises:
        UsageError: Nothing was named, and there is no run.
        ModelError: A file that was named is not there, or is no model.
    """
    named: dict[Path, bool] = {}
    for artifact in artifacts or [newest_run(root)]:
        if artifact.is_dir():
            for path in _files_of(artifact):
                named.setdefault(path, False)
        else:
            _require_model(artifact)
            named[artifact] = True
    notes: list[str] = []
    checkpoints = [path for path in named if path.suffix == ".safetensors"]
    if not checkpoints:
        beside = next(iter(named)).with_name(BEST)
        if beside.is_file():
            named[beside] = False
            checkpoints = [beside]
        else:
            notes.append(
                f"No eager PyTorch to compare with: there is no {BEST} beside {next(iter(named))}."
            )
    found = [Contender(path, _kind(path), is_named) for path, is_named in named.items()]
    if compiled:
        # Whoever names a checkpoint has not named torch.compile, which may not work here.
        found += [Contender(path, "compiled", False) for path in checkpoints]
    return sorted(found, key=_place), notes


def _kind(path: Path) -> Kind:
    return next(kind for kind in _ORDER if kind == SUFFIX_BACKEND[path.suffix])


def _place(contender: Contender) -> tuple[int, int, str]:
    precision = _PRECISIONS.index(_precision_of_name(contender.path))
    return _ORDER.index(contender.kind), precision, str(contender.path)


def _files_of(run: Path) -> list[Path]:
    """The best checkpoint, the ONNX files and the whole plans of a run folder."""
    files = [run / BEST, *sorted(run.glob("*.onnx")), *sorted(run.glob("*.plan"))]
    # A killed atomic_path leaves its temporary file behind, dot and suffix and all.
    there = [p for p in files if p.is_file() and not p.name.startswith(".") and not is_part(p)]
    if not there:
        raise ModelError(
            f"{run} holds no {BEST}, ONNX file or plan.", "Name a model file or a run folder."
        )
    return there


def _require_model(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"There is no {path}.", "Name an existing model file or run folder.")
    if path.suffix not in SUFFIX_BACKEND:
        kinds = ", ".join(SUFFIX_BACKEND)
        raise ModelError(f"{path} is no model: its suffix is none of {kinds}.")
    if is_part(path):
        raise UsageError(
            f"{path} is a part of an engine.", "Name the whole plan, which takes images."
        )


def told_apart(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The same names, with the file behind those that occur more than once."""
    apart = [
        f"{name} ({path.parent.name}/{path.name})" if names.count(name) > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]
    return [
        f"{name} #{apart[: index + 1].count(name)}" if apart.count(name) > 1 else name
        for index, name in enumerate(apart)
    ]
