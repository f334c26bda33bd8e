"""``torchrun -m fcn_deploy.training``: ``fcn-deploy train`` as one of several processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcn_deploy.cli.app import app, show, terminate
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from fcn_deploy.training.progress import Listener, TrainReport
    from fcn_deploy.training.rank_process import Work


@dataclass(frozen=True)
class Meeting:
    """Where the ranks meet.

    Attributes:
        host: Name or address.
        port: Of a TCPStore.
        served: Whether torchrun serves it, or else rank 0 has to.
        attempt: How often torchrun has started all ranks again.
    """

    host: str
    port: int
    served: bool
    attempt: int


class Place:
    """What torchrun tells a process of its place among the others.

    Args:
        environment: Variables of the process.

    Raises:
        UsageError: It was not started by torchrun.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        try:
            self._numbers = tuple(
                int(environment[name])
                for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            )
            self._meeting = Meeting(
                environment["MASTER_ADDR"],
                int(environment["MASTER_PORT"]),
                environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
            )
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"This is for torchrun to start, which sets {error}.",
                "Run: torchrun --nproc-per-node=2 -m fcn_deploy.training DATA, or: "
                "fcn-deploy train DATA --devices 2",
            ) from error
        self._store: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that shows how it goes."""
        return self._numbers[0] == 0

    def first_to_report(self) -> bool:
        """Whether no other process has said yet why all of them end."""
        if self._store is None:  # before they meet, all of them fail alike
            return self.first
        try:
            return int(self._store.add("reported", 1)) == 1
        except RuntimeError:  # the store has gone with the process that served it
            return True

    def run(self, work: Work, device: str, listener: Listener) -> TrainReport:
        """Do a rank's work, once all have met.

        Args:
            work: What to do.
            device: As in TrainConfig.
            listener: Told of the progress.
        """
        from fcn_deploy.training.distributed import Ranks, joined, rank_device, shared_store

        ranks, meeting = Ranks(*self._numbers), self._meeting
        own = rank_device(device, ranks)
        serve = ranks.first and not meeting.served
        prefix = f"fcn-deploy/{meeting.attempt}"
        self._store = shared_store(meeting.host, meeting.port, ranks, serve=serve, prefix=prefix)
        try:
            with joined(ranks, self._store, own):
                return work(ranks, listener)
        except SystemExit:
            if self.first_to_report():
                show(
                    "Terminated, as torchrun does with all ranks when one has ended.\n"
                    "What was saved is kept: --resume goes on after it."
                )
            raise


def main() -> None:
    """Entry point of ``python -m fcn_deploy.training``."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        place = Place(os.environ)
    except UsageError as error:
        show(str(error))
        sys.exit(error.exit_code)
    app(["train", *sys.argv[1:]], prog_name="fcn-deploy", obj=place)
