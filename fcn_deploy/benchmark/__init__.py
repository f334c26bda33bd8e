"""Latency, throughput, memory, power and accuracy of all backends, in one interleaved run."""

from __future__ import annotations

from fcn_deploy.benchmark.measure import measure
from fcn_deploy.benchmark.result import Benchmark, EndToEnd, Refused, Row, Spread, Timing
from fcn_deploy.benchmark.settings import Settings

__all__ = ["Benchmark", "EndToEnd", "Refused", "Row", "Settings", "Spread", "Timing", "measure"]
