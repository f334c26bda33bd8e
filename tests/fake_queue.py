"""A FAKE of a GPU that works late: what it has been told to do, and in what order it may do it.

There is no time in it: nothing measured with it says anything of any device.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from fake_memory import Allocation, Span


class DeviceFaultError(Exception):
    """Work failed on the device; CUDA then answers every later call with the same error.

    Args:
        code: Name of a member of ``cudaError_t``.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


_numbers = count()


@dataclass(eq=False)
class Operation:
    """Work in a stream.

    Attributes:
        what: In words, for messages.
        run: Does it.
        reads: What it reads while it runs.
        writes: What it writes while it runs.
        relaunch: Raises AssertionError where a graph that holds it must not be launched any more.
        after: What must be done before.
        done: Whether it has run.
        seen: Whether the host knows that it has run, because it waited for it.
    """

    what: str
    run: Callable[[], None] = lambda: None
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    relaunch: Callable[[], None] = lambda: None
    after: tuple[Operation, ...] = ()
    done: bool = False
    seen: bool = False
    number: int = field(default_factory=lambda: next(_numbers))

    def again(self, after: tuple[Operation, ...]) -> Operation:
        """The same work once more, after other operations."""
        return Operation(self.what, self.run, self.reads, self.writes, self.relaunch, after)

    def require_usable(self) -> None:
        """Raise AssertionError where memory that it touches has been freed."""
        for span in (*self.reads, *self.writes):
            span.require_live(self.what)

    def conflicts(self, other: Operation) -> bool:
        """Whether the result depends on which of the two runs first."""
        mine, theirs = (*self.reads, *self.writes), (*other.reads, *other.writes)
        return any(a.overlaps(b) for a in self.writes for b in theirs) or any(
            a.overlaps(b) for a in mine for b in other.writes
        )

    def before(self) -> set[Operation]:
        """Everything that must be done before it, and itself; what the host knows of left out."""
        found: set[Operation] = set()
        rest = [self]
        while rest:
            operation = rest.pop()
            if operation not in found and not operation.seen:
                found.add(operation)
                rest += operation.after
        return found


def require_order(new: Operation, others: Iterable[Operation]) -> None:
    """Raise AssertionError where nothing orders ``new`` and an operation that it conflicts with."""
    rivals = [other for other in others if other is not new and new.conflicts(other)]
    if rivals:
        ordered = new.before()
        for rival in rivals:
            assert rival in ordered, (
                f"race: {new.what} and {rival.what} touch the same memory, and neither a stream, "
                "an event nor a wait of the host orders them"
            )


class Queue:
    """What the device has been told to do and the host has not waited for.

    Args:
        seed: ``None``: work is done when somebody waits for it, and no sooner. A number: the device
            runs ahead now and then, and streams overtake each other as far as nothing orders them.
    """

    def __init__(self, seed: int | None) -> None:
        self._random = None if seed is None else random.Random(seed)
        self.unseen: list[Operation] = []

    def add(self, operation: Operation) -> None:
        """Take work on; raises AssertionError for a race or freed memory."""
        operation.require_usable()
        require_order(operation, self.unseen)
        self.unseen.append(operation)

    def finish(self, operation: Operation) -> None:
        """The host waits until an operation is done."""
        if self._random is None:
            for earlier in sorted(operation.before(), key=lambda one: one.number):
                _carry_out(earlier)
        while not operation.done:
            self._step(self.unseen)
        self._see(operation)

    def poll(self, operation: Operation) -> bool:
        """The host asks whether it is done; in between a little gets done, so that polling ends."""
        if operation.done:
            self._see(operation)
            return True
        self._step(operation.before())
        return False

    def run_ahead(self) -> None:
        """Let the device do some work that nobody waits for yet, if there is a seed."""
        if self._random is not None:
            for _ in range(self._random.randrange(3)):
                self._step(self.unseen)

    def abandon(self) -> None:
        """The device has failed: what waits will never be done, and nobody needs to wait for it."""
        for operation in self.unseen:
            operation.done = operation.seen = True
        self.unseen.clear()

    def in_flight(self, allocation: Allocation) -> Operation | None:
        """An operation that may still touch this memory, as far as the host knows."""
        for operation in self.unseen:
            if any(span.allocation is allocation for span in (*operation.reads, *operation.writes)):
                return operation
        return None

    def _step(self, among: Iterable[Operation]) -> None:
        ready = [one for one in among if not one.done and all(o.done for o in one.after)]
        if ready:
            ready.sort(key=lambda one: one.number)
            _carry_out(ready[0] if self._random is None else self._random.choice(ready))

    def _see(self, operation: Operation) -> None:
        for earlier in operation.before():
            earlier.seen, earlier.after = True, ()
        self.unseen = [one for one in self.unseen if not one.seen]


def _carry_out(operation: Operation) -> None:
    if not operation.done:
        operation.done = True  # also where it fails: nobody can wait for it again
        operation.require_usable()
        operation.run()
