"""A FAKE of CUDA's streams, events and stream capture, on the queue of fake_queue; not a GPU."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fake_queue import Operation, Queue, require_order

GLOBAL, RELAXED = 0, 2  # of cudaStreamCaptureMode


class CudaError(Exception):
    """What a call answers instead of success.

    Args:
        code: Name of a member of ``cudaError_t``.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Capture:
    """What is recorded, and not done, between begin and end."""

    origin: Stream
    mode: int
    thread: int = field(default_factory=threading.get_ident)
    operations: list[Operation] = field(default_factory=list)
    joined: list[Stream] = field(default_factory=list)
    valid: bool = True


@dataclass(eq=False)
class Stream:
    """A stream.

    Attributes:
        name: For messages.
        blocking: Whether it and the legacy stream wait for each other.
        tail: What the next operation comes after.
        capture: What records it, if anything does.
        captured_tail: The same of its part of the capture.
    """

    name: str
    blocking: bool
    tail: tuple[Operation, ...] = ()
    capture: Capture | None = None
    captured_tail: tuple[Operation, ...] = ()


@dataclass(eq=False)
class Event:
    """An event; ``operation`` is what was last recorded, ``capture`` what recorded it."""

    timing: bool
    operation: Operation | None = None
    capture: Capture | None = None


@dataclass(eq=False)
class Graph:
    """Operations as they were captured, each after those that it depends on."""

    operations: list[Operation]


@dataclass(eq=False)
class Executable:
    """A graph that can be launched; its launches come after each other."""

    operations: list[Operation]
    last: tuple[Operation, ...] = ()


class Streams:
    """Streams of one device.

    Args:
        seed: See :class:`fake_queue.Queue`.
    """

    def __init__(self, seed: int | None) -> None:
        self.queue = Queue(seed)
        self.legacy = Stream("the default stream", blocking=True)
        self.live: list[Stream] = []
        self.captures: list[Capture] = []

    def create(self, name: str, *, blocking: bool) -> Stream:
        stream = Stream(name, blocking)
        self.live.append(stream)
        return stream

    def destroy(self, stream: Stream) -> None:
        """Forget a stream; what is still in it will be done all the same."""
        assert stream.capture is None, f"{stream.name} is destroyed while it captures"
        self.live.remove(stream)
        if stream.blocking:
            self.legacy.tail += stream.tail

    def add(self, stream: Stream, operation: Operation) -> None:
        """Queue an operation, or record it where the stream captures."""
        if stream.capture is not None:
            self._record(stream, stream.capture, operation)
            return
        operation.after += stream.tail
        if stream is self.legacy:
            self.require_no_blocking_capture()
            for other in self.live:
                operation.after += other.tail if other.blocking else ()
        elif stream.blocking:
            operation.after += self.legacy.tail
        self.queue.add(operation)
        stream.tail = (operation,)

    def _record(self, stream: Stream, capture: Capture, operation: Operation) -> None:
        if not capture.valid:
            raise CudaError("cudaErrorStreamCaptureInvalidated")
        operation.after += stream.captured_tail
        operation.require_usable()
        require_order(operation, capture.operations)
        capture.operations.append(operation)
        stream.captured_tail = (operation,)

    def wait(self, stream: Stream) -> None:
        """The host waits for all of a stream."""
        self._forbid_while_capturing(stream)
        if stream is self.legacy:
            self.add(stream, Operation("a wait"))
        for operation in stream.tail:
            self.queue.finish(operation)

    def poll(self, stream: Stream) -> bool:
        """The host asks whether a stream is done."""
        self._forbid_while_capturing(stream)
        if stream is self.legacy and not all(o.done for o in stream.tail):
            self.add(stream, Operation("a query"))
        return all(self.queue.poll(operation) for operation in stream.tail)

    def wait_for_all(self) -> None:
        """The host waits for the device."""
        if self.captures:
            raise self.invalidate(*self.captures)
        for operation in list(self.queue.unseen):
            self.queue.finish(operation)

    def record(self, event: Event, stream: Stream) -> None:
        operation = Operation(f"an event recorded in {stream.name}")
        self.add(stream, operation)
        event.operation, event.capture = operation, stream.capture

    def wait_event(self, stream: Stream, event: Event) -> None:
        """Let a stream wait for what an event was last recorded after; join its capture, if any."""
        if event.operation is None:
            return
        if event.capture is not None:
            self._join(stream, event.capture, event.operation)
        elif stream.capture is not None:
            raise self.invalidate(stream.capture, code="cudaErrorStreamCaptureIsolation")
        else:
            self.add(stream, Operation("a wait for an event", after=(event.operation,)))

    def _join(self, stream: Stream, capture: Capture, operation: Operation) -> None:
        if capture not in self.captures:
            raise CudaError("cudaErrorCapturedEvent")
        if stream is self.legacy:
            raise self.invalidate(capture, code="cudaErrorStreamCaptureImplicit")
        if stream.capture is None:
            stream.capture = capture
            capture.joined.append(stream)
        elif stream.capture is not capture:
            raise self.invalidate(capture, stream.capture, code="cudaErrorStreamCaptureMerge")
        stream.captured_tail += (operation,)

    def require_done(self, event: Event) -> None:
        """The host waits for an event."""
        self._forbid_captured(event)
        if event.operation is not None:
            self.queue.finish(event.operation)

    def poll_event(self, event: Event) -> bool:
        """The host asks whether an event has happened."""
        self._forbid_captured(event)
        return event.operation is None or self.queue.poll(event.operation)

    def begin(self, stream: Stream, mode: int) -> None:
        """Record from now on what is put into a stream."""
        if stream is self.legacy:
            raise CudaError("cudaErrorStreamCaptureUnsupported")
        if stream.capture is not None:
            raise CudaError("cudaErrorIllegalState")
        stream.capture, stream.captured_tail = Capture(stream, mode), ()
        stream.capture.joined.append(stream)
        self.captures.append(stream.capture)

    def end(self, stream: Stream) -> Graph:
        """Stop recording; the stream works again, whatever the outcome."""
        capture = stream.capture
        if capture is None:
            raise CudaError("cudaErrorIllegalState")
        if capture.origin is not stream:
            raise self.invalidate(capture, code="cudaErrorStreamCaptureUnmatched")
        if capture.mode != RELAXED and capture.thread != threading.get_ident():
            raise CudaError("cudaErrorStreamCaptureWrongThread")
        covered = {one for operation in stream.captured_tail for one in operation.before()}
        self.captures.remove(capture)
        for joined in capture.joined:
            joined.capture, joined.captured_tail = None, ()
        if not capture.valid:
            raise CudaError("cudaErrorStreamCaptureInvalidated")
        if not covered.issuperset(capture.operations):
            raise CudaError("cudaErrorStreamCaptureUnjoined")
        return Graph(capture.operations)

    def launch(self, graph: Executable, stream: Stream) -> None:
        """Queue the operations of a graph, as a whole, behind its launch before."""
        for operation in graph.operations:
            operation.require_usable()
            operation.relaunch()
        first = Operation("the launch of a graph", after=graph.last)
        self.add(stream, first)
        copies: dict[Operation, Operation] = {}
        for operation in graph.operations:
            after = tuple(copies[one] for one in operation.after) or (first,)
            copy = operation.again(after)
            copies[operation] = copy
            if stream.capture is None:
                self.queue.add(copy)
            else:
                require_order(copy, stream.capture.operations)
                stream.capture.operations.append(copy)
        last = Operation("the end of a graph", after=tuple(copies.values()))
        self.add(stream, last)
        graph.last = (last,) if stream.capture is None else graph.last

    def invalidate(
        self, *captures: Capture, code: str = "cudaErrorStreamCaptureUnsupported"
    ) -> CudaError:
        """What to raise for a call that ends these captures, to be found out at their end."""
        for capture in captures:
            capture.valid = False
        return CudaError(code)

    def forbid_unsafe(self) -> None:
        """Refuse what must not be called while this thread, or any in global mode, captures.

        CUDA's documentation leaves open what all is meant. Here it is everything that allocates,
        frees, waits or asks, which is more than some drivers refuse.
        """
        me = threading.get_ident()
        if disturbed := [
            capture
            for capture in self.captures
            if capture.mode != RELAXED and (capture.mode == GLOBAL or capture.thread == me)
        ]:
            raise self.invalidate(*disturbed)

    def require_no_blocking_capture(self) -> None:
        """Refuse the legacy stream while a stream that waits for it captures."""
        if disturbed := [c for c in self.captures if any(s.blocking for s in c.joined)]:
            raise self.invalidate(*disturbed, code="cudaErrorStreamCaptureImplicit")

    def _forbid_while_capturing(self, stream: Stream) -> None:
        if stream.capture is not None:
            raise self.invalidate(stream.capture)
        self.forbid_unsafe()

    def _forbid_captured(self, event: Event) -> None:
        if event.capture is not None:
            raise self.invalidate(event.capture, code="cudaErrorCapturedEvent")
        self.forbid_unsafe()
