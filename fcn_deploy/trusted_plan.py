"""A plan without a passport, where the user vouches for it: what can be known all the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fcn_deploy.errors import ModelError
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.passport import WHOLE, Part, Passport, Precision
from fcn_deploy.plan_header import read_header
from fcn_deploy.plan_name import find_name
from fcn_deploy.recipe import EngineOptions
from fcn_deploy.spec import ModelSpec


def trusted_engine(plan: Path) -> tuple[Passport, dict[str, bytes]]:
    """What the bytes of a plan and the files beside it tell, in place of a passport.

    Classes come from the name of its network, or from the ONNX file of the same name beside it.
    Its library's version and the GPU it was built for are not known: the library itself will say.

    Raises:
        ModelError: Not a plan, or nothing says what its classes are.
    """
    header = read_header(plan)
    content = plan.read_bytes()
    name = find_name(content)
    precision, spec = ("fp32", None) if name is None else (name.precision, name.spec)
    if spec is None:
        precision, spec = _beside(plan)
    passport = Passport(
        parts={WHOLE: Part(plan.name, hashlib.sha256(content).hexdigest())},
        source="",
        source_sha256="",
        flavour=header.flavour,
        version="",
        targets=("portable",),
        options=EngineOptions(fp16=precision == "fp16", flavour=header.flavour),
        precision=Precision(precision, 0, 0, 0.0, 0.0, 0.0),
        parity=None,
        spec=spec,
    )
    return passport, {WHOLE: content}


def _beside(plan: Path) -> tuple[str, ModelSpec]:
    """Precision and description of the ONNX file that a plan was probably made from."""
    candidates = [plan.with_suffix(".onnx"), plan.with_name(f"{plan.name.split('.')[0]}.onnx")]
    for path in candidates:
        if path.is_file():
            model = read_onnx(path)
            return model.precision, model.spec
    raise ModelError(
        f"Nothing says which classes {plan} has: no passport, no name inside, and no "
        f"{candidates[-1].name} beside it.",
        "Put the ONNX file that it was built from beside it.",
    )
