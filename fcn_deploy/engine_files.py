"""The files of an engine: where they lie, how they are written, and how they are read with care."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fcn_deploy.artifacts import is_part, write_atomically
from fcn_deploy.errors import EngineError, ModelError
from fcn_deploy.passport import UPSAMPLING, WHOLE, Passport
from fcn_deploy.plan_header import REBUILD, read_header


def passport_path(plan: Path) -> Path:
    """Where the passport of a plan lies."""
    return plan.with_name(plan.name + ".json")


def part_path(plan: Path, role: str) -> Path:
    """Where a part of an engine lies, by the path of its whole plan."""
    if role == WHOLE:
        return plan
    return plan.with_name(f"{plan.stem}.{role}{'.npy' if role == UPSAMPLING else plan.suffix}")


def write_engine(path: Path, contents: Mapping[str, bytes], passport: Passport) -> None:
    """Write the parts of an engine and their passport.

    The passport goes last: a crash in between leaves an engine that is refused, never a wrong one.

    Raises:
        EnvironmentFault: A file cannot be written.
    """
    for role, content in contents.items():
        write_atomically(part_path(path, role), content)
    write_atomically(passport_path(path), passport.to_json().encode())


def read_passport(plan: Path) -> Passport:
    """The passport of an engine, after all of its files were found to be those it speaks of.

    Raises:
        ModelError: No plan, no passport, or they do not belong together.
    """
    return read_engine(plan)[0]


def read_engine(plan: Path) -> tuple[Passport, dict[str, bytes]]:
    """The passport of an engine and the bytes of its parts, which were checked against it.

    Raises:
        ModelError: No plan, no passport, or they do not belong together.
    """
    if is_part(plan):
        whole = plan.with_name(f"{plan.stem.rpartition('.')[0]}{plan.suffix}")
        raise ModelError(f"{plan} is one part of an engine.", f"Name the whole one: {whole}")
    header = read_header(plan)
    sidecar = passport_path(plan)
    if not sidecar.is_file():
        raise EngineError(
            f"{plan} has no passport beside it, {sidecar.name}: who built it, and for what?",
            f"A plan is native code. {REBUILD}\nOr, if you know its builder: --trust-engine",
        )
    try:
        text = sidecar.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"The passport {sidecar} cannot be read: {error}.", REBUILD) from error
    passport = Passport.from_json(text)
    if passport.flavour != header.flavour:
        raise EngineError(f"{plan} is a plan of {header.flavour}, its passport is not.", REBUILD)
    contents = {}
    for role, part in passport.parts.items():
        path = plan if role == WHOLE else plan.with_name(part.file)
        try:
            contents[role] = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no file can be called so
            cause = error.strerror if isinstance(error, OSError) else error
            raise EngineError(
                f"{path} cannot be read, a part of {plan.name}: {cause}.", REBUILD
            ) from error
        if hashlib.sha256(contents[role]).hexdigest() != part.sha256:
            raise EngineError(f"{path} is not the file that its passport speaks of.", REBUILD)
    return passport, contents


def last_passport(plan: Path) -> Passport | None:
    """The passport beside a plan, whether or not it still fits; ``None`` where none is readable."""
    try:
        return Passport.from_json(passport_path(plan).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ModelError):
        return None


def source_of(plan: Path) -> Path:
    """The ONNX file beside a plan that it was built from, as far as that is known.

    Raises:
        ModelError: There is none.
    """
    passport = last_passport(plan)
    names = [] if passport is None else [passport.source]
    names += [f"{plan.stem}.onnx", f"{plan.stem.removesuffix('.fp16')}.onnx"]
    for name in names:
        if name and plan.with_name(name).is_file():
            return plan.with_name(name)
    raise ModelError(
        f"There is no {names[-1]} beside {plan} to build it from.",
        "Name it: fcn-deploy build-engine MODEL.onnx --fp16",
    )
