"""Was an artifact made from the file that lies beside it now, or from an earlier one?"""

from __future__ import annotations

import json
from pathlib import Path

from fcn_deploy.artifacts import sha256
from fcn_deploy.engine_files import passport_path, read_passport
from fcn_deploy.errors import EngineError, ModelError
from fcn_deploy.spec import SOURCE_KEY


def require_fresh(artifact: Path) -> None:
    """Refuse an artifact whose source, if it lies beside it, has changed since.

    Contents are compared, not times: those change when a run folder is copied. For artifacts that
    were picked, not named: whoever names a file means that file.

    Args:
        artifact: An ONNX file or a plan; of a plan, the ONNX file it came from is checked, too.

    Raises:
        ModelError: Names the source and the command that mends it; or the file is not usable.
    """
    kind: type[ModelError] = ModelError
    if artifact.suffix == ".onnx":
        made_from, remedy = _source_of_onnx(artifact), "Make it again: fcn-deploy export"
    elif artifact.suffix == ".plan":
        if not passport_path(artifact).is_file():
            return  # for whoever loads it to refuse, or to trust
        passport = read_passport(artifact)
        made_from = (passport.source, passport.source_sha256)
        remedy, kind = "Make it again: fcn-deploy build-engine --fp16", EngineError
    else:
        return
    name, digest = made_from
    source = artifact.with_name(name) if name else artifact
    if source == artifact or not source.is_file():
        return
    if _identity(source) != digest:
        raise kind(
            f"{artifact} was made from another {name} than the one beside it.",
            f"{remedy}; or name the file that you mean.",
        )
    require_fresh(source)


def _identity(path: Path) -> str:
    if path.suffix != ".onnx":
        return sha256(path)
    from fcn_deploy.onnx_file import identity

    return identity(path)


def _source_of_onnx(path: Path) -> tuple[str, str]:
    from fcn_deploy.onnx_file import read_onnx

    for prop in read_onnx(path).proto.metadata_props:
        if prop.key == SOURCE_KEY:
            source = json.loads(prop.value)
            return str(source["name"]), str(source["sha256"])
    return "", ""
