"""The result, left with the artifact: in the metadata of an ONNX file, or a plan's passport."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from fcn_deploy.artifacts import write_atomically
from fcn_deploy.engine_files import passport_path, read_passport
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.spec import VERIFIED_KEY
from fcn_deploy.verify.result import Rung, Verification


def stamp(artifact: Path, rung: Rung, verification: Verification) -> None:
    """Write down in an artifact what it was verified against, and with what result.

    The stamp is no part of what a file is: :func:`fcn_deploy.onnx_file.identity` leaves it out, so
    that engines that were built from the ONNX file stay what they are.

    Raises:
        EnvironmentFault: The file cannot be written.
        ModelError: It has been damaged since.
    """
    facts = summary(rung, verification)
    if artifact.suffix == ".onnx":
        proto = read_onnx(artifact).proto
        kept = [prop for prop in proto.metadata_props if prop.key != VERIFIED_KEY]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        entry = proto.metadata_props.add()
        entry.key, entry.value = VERIFIED_KEY, json.dumps(facts)
        write_atomically(artifact, proto.SerializeToString())
    elif artifact.suffix == ".plan" and passport_path(artifact).is_file():
        passport = replace(read_passport(artifact), verified=facts)
        write_atomically(passport_path(artifact), passport.to_json().encode())


def summary(rung: Rung, verification: Verification) -> dict[str, Any]:
    """What is worth knowing wherever the artifact goes."""
    crops, images = rung.crops, rung.images
    return {
        "passed": rung.passed,
        "date": verification.about["date"],
        "against": verification.reference["file"],
        "against_sha256": verification.reference["sha256"],
        "provider": rung.provider,
        "agreement": images.agreement if images else crops.agreement if crops else None,
        "images": images.count if images else 0,
        "crops": crops.count if crops else 0,
        "mean_iou": images.mean_iou if images else None,
        "mean_iou_change": images.mean_iou_change if images else None,
        "problems": list(rung.problems),
    }
