"""Templates filled in: one HTML file with everything in it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy import __version__
from fcn_deploy.artifacts import write_atomically
from fcn_deploy.errors import MissingExtraError

if TYPE_CHECKING:
    from jinja2 import Environment

EXTRA = "report"


def require_packages(*packages: str) -> None:
    """Find out before the work that no page could be written after it.

    Args:
        packages: jinja2, and matplotlib for pages with charts.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, EXTRA) from error


def write_page(path: Path, template: str, facts: dict[str, Any]) -> None:
    """Fill in a template of this package and write it, whole or not at all.

    Args:
        path: The HTML file.
        template: Name of the template.
        facts: What it speaks of; every text is escaped, names of files and classes too.

    Raises:
        MissingExtraError: jinja2 is not installed.
        EnvironmentFault: The file cannot be written.
    """
    page = _environment().get_template(template).render(version=__version__, **facts)
    # What is no character, such as half a surrogate pair in the name of a file, becomes a "?".
    write_atomically(path, page.encode("utf-8", "replace"))


def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", EXTRA) from error
    environment = Environment(
        loader=PackageLoader("fcn_deploy.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "percent": percent, "size": size, "ms": ms}
    return environment


def figure(value: float | None) -> str:
    """A number in [0, 1], with three digits; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; what is not all of it never shows as 100 %."""
    if share is None:
        return "-"
    shown = f"{100 * share:.{digits}f}"
    if share < 1 and float(shown) >= 100:
        return f"> {100 - 10**-digits:.{digits}f} %"
    if share > 0 and float(shown) == 0:
        return f"< {10**-digits:.{digits}f} %"
    return f"{shown} %"


def size(count: float | None) -> str:
    """A number of bytes, for people."""
    if count is None:
        return "-"
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 / 10 else f"{count / 2**10:.1f} KiB"


def ms(value: float | None) -> str:
    """Milliseconds with three digits that matter; a dash where there are none."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} ms"
