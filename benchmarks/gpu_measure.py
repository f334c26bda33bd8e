"""One job, all contenders: tried apart, judged, and timed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from gpu_contenders import ALONE, OURS
from gpu_device import Device, give_back
from gpu_job import Contender, Job, Loaded, reason_of
from gpu_parity import Truth, Verdict, judge
from gpu_results import Row
from gpu_rounds import Pace, in_bursts, stopwatch
from gpu_trial import Trial


@dataclass(frozen=True)
class Truths:
    """What labels are held against.

    Attributes:
        tiled: Of a batch, or of an image that is cut into crops.
        whole: Of an image in one piece; ``None`` where nobody answers for it.
        reference: What computed them.
    """

    tiled: Truth
    whole: Truth | None
    reference: str

    def of(self, contender: Contender) -> Truth:
        """The one that a contender's labels must be."""
        if not contender.in_one_piece:
            return self.tiled
        assert self.whole is not None, "somebody answers for the image in one piece"
        return self.whole


def measure(
    contenders: Sequence[Contender],
    job: Job,
    trials: Mapping[str, Trial],
    truths: Truths,
    device: Device,
    pace: Pace,
) -> dict[str, Row]:
    """Load all that have passed their trial, judge their labels, and time those that are right."""
    pixels = job.load()
    reasons = {name: trial.reason for name, trial in trials.items() if trial.reason}
    verdicts: dict[str, Verdict] = {}
    works: dict[str, Callable[[], float]] = {}
    with ExitStack() as opened:
        for contender in contenders:
            name = contender.name
            if name in reasons:
                continue
            try:
                loaded = contender.open(job)
                opened.callback(loaded.close)
                verdicts[name] = _judged(loaded, contender, job, truths)
            except Exception as error:  # a vendor's; memory is shorter beside the others
                reasons[name] = f"beside the others: {reason_of(error)}"
                continue
            give_back()
            if verdicts[name].wrong:
                reasons[name] = f"labels are wrong at {verdicts[name].wrong} pixels"
            else:
                works[name] = stopwatch(loaded, pixels)
        samples, failed = in_bursts(works, pace, device.synchronise) if works else ({}, {})
    reasons |= failed
    return {
        contender.name: Row(
            reason=reasons.get(contender.name, ""),
            samples=samples.get(contender.name, []),
            verdict=verdicts.get(contender.name),
            memory_bytes=trials[contender.name].memory_bytes,
            busy_s=trials[contender.name].busy_s,
            ours=contender.name.startswith(OURS),
            alone=ALONE in contender.name,
        )
        for contender in contenders
    }


def _judged(loaded: Loaded, contender: Contender, job: Job, truths: Truths) -> Verdict:
    """Compare the third answer: by then, graphs are recorded and launched."""
    pixels = job.load()
    for _ in range(2):
        loaded.labels(pixels)
    return judge(loaded.labels(pixels), truths.of(contender), contender.precision)
