"""May this artifact be shipped instead of the PyTorch model? The ladder of comparisons.

Eager PyTorch in float32 is what is believed. Each rung is one artifact, or eager PyTorch in half
precision, and is compared with it: on crops of several shapes and batch sizes (logits, labels, by
how close the race of the two best classes was), and on whole images through tiling and merging
(labels, and IoU where there are masks).
"""

from __future__ import annotations

from fcn_deploy.verify.ladder import Candidate, Findings, verify
from fcn_deploy.verify.result import Rung, Verification

__all__ = ["Candidate", "Findings", "Rung", "Verification", "verify"]
