"""What ``fcn-deploy verify`` found: the parity ladder, for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.pages.machine import machine_rows
from fcn_deploy.pages.page import percent, write_page
from fcn_deploy.pages.svg import Chart
from fcn_deploy.pages.verification_charts import errors_chart, margins_chart

LAYERS_SHOWN = 24
_MARKS = {True: "passed", False: "failed", None: "not run"}


@dataclass(frozen=True)
class Picture:
    """A picture of a disagreement; ``image`` is an address that holds its own content."""

    caption: str
    image: str


@dataclass(frozen=True)
class Rung:
    """One artifact that was compared.

    Attributes:
        name: What it is.
        file: Its name, or empty.
        outcome: ``passed``, ``failed`` or ``not run``.
        facts: Name and value of each figure.
        problems: What failed.
        notes: Remarks, and the diagnosis.
        layers: Name, error made there, and error so far, of each layer that was compared.
        pictures: Where it differs.
    """

    name: str
    file: str
    outcome: str
    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    layers: tuple[tuple[str, str, str], ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Verification:
    """A parity ladder as a page shows it.

    Attributes:
        outcome: In a word or two.
        remark: Against what, on what.
        passed: Whether nothing failed.
        rungs: What was compared.
        charts: Errors of the logits, and labels by margin: what there is of them.
        setting: Against what, on what, within which limits.
        made: When, as the comparison says.
    """

    outcome: str
    remark: str
    passed: bool
    rungs: tuple[Rung, ...]
    charts: tuple[tuple[str, Chart], ...]
    setting: tuple[tuple[str, str], ...]
    made: str


def write_verification_page(path: Path, verification: dict[str, Any]) -> None:
    """Write the page of a comparison.

    Args:
        path: The HTML file.
        verification: What ``verify.json`` holds.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        EnvironmentFault: The file cannot be written.
    """
    shown = verification_of(verification)
    facts = {"title": "Verification", "made": shown.made, "verification": shown}
    write_page(path, "verification.html", facts)


def verification_of(content: dict[str, Any]) -> Verification:
    """A parity ladder as a page shows it, from ``verify.json``.

    Raises:
        KeyError: Something is missing in it; TypeError, ValueError or AttributeError: or is not
            what it should be.
        MissingExtraError: matplotlib is not installed.
    """
    rungs, reference, data = content["rungs"], content["reference"], content["data"]
    ran = [rung for rung in rungs if rung["passed"] is not None]
    passed = sum(bool(rung["passed"]) for rung in ran)
    compared = [rung for rung in rungs if rung["crops"]]
    charts: list[tuple[str, Chart]] = []
    if with_logits := [rung for rung in compared if _has_logits(rung["crops"])]:
        charts.append(("Error of the logits", errors_chart(with_logits)))
    if any(rung["crops"]["by_margin"] for rung in compared):
        charts.append(("Labels by margin", margins_chart(compared)))
    return Verification(
        f"{passed} of {len(ran)}",
        f"against {reference['name']} on {data['images']} images",
        bool(content["passed"]),
        tuple(_rung(rung) for rung in rungs),
        tuple(charts),
        _setting(content),
        content["date"],
    )


def _has_logits(crops: dict[str, Any]) -> bool:
    """Whether there are errors to draw: engines return labels alone, broken ones no numbers."""
    errors = [crops[key] for key in ("max_error", "p999_error", "rms_error")]
    return all(error is not None and math.isfinite(error) for error in errors)


def _rung(rung: dict[str, Any]) -> Rung:
    notes = [*rung["notes"], *([rung["diagnosis"]] if rung["diagnosis"] else [])]
    return Rung(
        rung["name"],
        rung["file"] or "",
        _MARKS[rung["passed"]],
        (*_crops(rung), *_images(rung)),
        tuple(rung["problems"]),
        tuple(notes),
        tuple(
            (layer["name"], f"{layer['local_error']:.1e}", f"{layer['error']:.1e}")
            for layer in rung["layers"][:LAYERS_SHOWN]
        ),
        tuple(
            Picture(picture["caption"], f"data:image/png;base64,{picture['image']}")
            for picture in rung["pictures"]
        ),
    )


def _crops(rung: dict[str, Any]) -> list[tuple[str, str]]:
    crops, weights = rung["crops"], rung["weights"]
    facts = [("runs on", f"{rung['provider'] or rung['backend']}, {rung['precision'] or '-'}")]
    if weights:
        different = len(weights["different"])
        facts.append(("weights", f"{weights['compared']} compared, {different} different"))
    if crops:
        sizes = len({(batch["height"], batch["width"]) for batch in crops["by_shape"]})
        facts += [
            ("crops", f"{crops['count']:,}, of {sizes} size{'s' * (sizes != 1)}"),
            ("labels equal on them", percent(crops["agreement"], 4)),
            ("flips where it was certain", f"{crops['flips_outside_margin']:,}"),
        ]
        if crops["max_error"] is not None:
            share = crops["max_error"] / (crops["logit_range"] or math.inf)
            text = f"{crops['max_error']:.2g} ({share:.1e} of their range)"
            facts.append(("largest error of a logit", text))
    return facts


def _images(rung: dict[str, Any]) -> list[tuple[str, str]]:
    images, pixel = rung["images"], rung["worst_pixel"]
    facts = []
    if images:
        facts.append((f"labels equal on {images['count']} images", percent(images["agreement"], 4)))
        if (worst := images["worst"]) and worst["agreement"] < 1:
            text = f"{worst['name']}: {percent(worst['agreement'], 3)}"
            facts.append(("the image that differs most", text))
        if images["mean_iou"] is not None:
            change = images["mean_iou_change"]
            moved = "" if change is None else f" ({change:+.4f})"
            facts.append(("mean IoU", f"{images['mean_iou']:.4f}{moved}"))
    if pixel:
        text = (
            f"{pixel['name']}, row {pixel['row']}, column {pixel['column']}: {pixel['reference']} "
            f"became {pixel['candidate']}, margin {pixel['margin']:.1e}"
        )
        facts.append(("the surest pixel that differs", text))
    return facts


def _setting(content: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    reference, data, limits = content["reference"], content["data"], content["limits"]
    split = f", split {data['split']}" if data["split"] else ""
    kind = "labelled images" if data["labelled"] else "images"
    rows = [
        ("reference", f"{reference['name']}: {reference['file']} on {reference['provider']}"),
        ("SHA-256 of it", reference["sha256"] or ""),
        ("images", f"{data['images']} {kind}{split}"),
        ("labels equal, at least", _limit(limits["min_agreement"])),
        ("mean IoU lost, at most", _limit(limits["max_miou_drop"])),
        *machine_rows(content["machine"], content["versions"]),
    ]
    return tuple((name, value) for name, value in rows if value)


def _limit(value: float | None) -> str:
    return "as usual for the precision" if value is None else f"{value:g}"
