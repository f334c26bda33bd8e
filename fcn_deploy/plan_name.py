"""What a plan says of itself: a compact JSON in its network's name.

TensorRT stores the name of a network in the engine and gives it back, so that the plan stays a plan
that any tool loads. It helps where the passport is lost; it proves nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fcn_deploy.errors import ModelError
from fcn_deploy.spec import ModelSpec, voc_palette

_START = '{"fcn-deploy":2,'
_LIMIT = 4095
"""Characters that the name of a network may have, measured with TensorRT-RTX 1.7."""


@dataclass(frozen=True)
class PlanName:
    """What the name of a network holds.

    Attributes:
        role: ``whole``, ``trunk`` or ``head``.
        precision: ``fp32`` or ``fp16``.
        source_sha256: Of the ONNX file.
        spec: The model's description; without training facts, and with the palette of Pascal VOC
            where its own did not fit; ``None`` where not even the classes fitted.
    """

    role: str
    precision: str
    source_sha256: str
    spec: ModelSpec | None

    def to_text(self) -> str:
        """JSON of at most 4,095 ASCII characters."""
        fields = {} if self.spec is None else json.loads(self.spec.to_json())
        fields.pop("training", None)
        for dropped in ("", "palette", "classes"):
            fields.pop(dropped, None)
            facts = {
                "fcn-deploy": 2,
                "role": self.role,
                "precision": self.precision,
                "source_sha256": self.source_sha256,
                "spec": fields if "classes" in fields else None,
            }
            text = json.dumps(facts, separators=(",", ":"))
            if len(text) <= _LIMIT:
                break
        return text


def find_name(plan: bytes) -> PlanName | None:
    """The description in the bytes of a plan; ``None`` where there is none.

    The library that reads names properly is native code, which is not to see a plan before it is
    known what it is.
    """
    start = plan.find(_START.encode())
    if start < 0:
        return None
    text = plan[start : start + _LIMIT].decode("ascii", "replace")
    try:
        fields, _ = json.JSONDecoder().raw_decode(text)
        described = fields["spec"]
        spec = None
        if described is not None:
            described.setdefault("palette", voc_palette(len(described["classes"])))
            spec = ModelSpec.from_json(json.dumps(described))
        return PlanName(
            str(fields["role"]), str(fields["precision"]), str(fields["source_sha256"]), spec
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ModelError):
        return None
