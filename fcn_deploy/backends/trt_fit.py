"""Whether an engine fits this machine, judged by its passport before anything native sees it."""

from __future__ import annotations

import re
from pathlib import Path

from fcn_deploy.errors import EngineError
from fcn_deploy.passport import Passport
from fcn_deploy.plan_header import REBUILD


def require_fitting(path: Path, passport: Passport, version: str, device: str) -> None:
    """Refuse an engine of another release or GPU before the native parser sees it.

    Args:
        path: The plan, for messages.
        passport: What is known of it.
        version: Of the library here.
        device: Compute capability of the GPU here, such as ``sm86``.

    Raises:
        EngineError: Says what it was built for and what is here.
    """
    built = passport.version
    later = passport.options.version_compatible and _parts(version) >= _parts(built)
    if built and version != built and not later:
        raise EngineError(
            f"{path} was built by {passport.flavour} {built}, this machine has {version}.", REBUILD
        )
    if not _runs_on(passport, device):
        raise EngineError(
            f"{path} was built for {', '.join(passport.targets)}, this GPU is {device}.", REBUILD
        )


def _runs_on(passport: Passport, device: str) -> bool:
    if device in passport.targets or passport.targets == ("portable",):
        return True
    ampere_plus = passport.options.hardware_compatibility == "ampere-plus"
    return ampere_plus and int(device.removeprefix("sm")) >= 80


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
