"""Do the next pieces of work in threads while the last one is being used."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Raised(Generic[Item]):
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


def ahead(items: Iterable[Item], depth: int = 1) -> Generator[Item, None, None]:
    """Yield ``items`` in order; a thread of its own makes up to ``depth`` of them in advance.

    What is raised while making them is raised here, in its place. When the consumer stops early,
    the thread ends with the item that it is at, before this generator is closed.

    Args:
        items: Consumed by the thread alone, generators included.
        depth: Items that wait; one more may be in the making.
    """
    waiting: queue.Queue[Item | _Raised[Item] | _End] = queue.Queue(depth)
    stop = threading.Event()

    def offer(item: Item | _Raised[Item] | _End) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(_End())
        except BaseException as error:  # the consumer decides, even on an interrupt
            offer(_Raised(error))
        finally:
            # In the thread that ran it, as its locals may belong to that thread.
            if isinstance(items, Iterator) and hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=work, name="fcn-deploy-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()


def mapped(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` in order, computed in threads while the caller goes on.

    ``items`` are taken in the caller's thread, ``workers`` further ones than were yielded. What
    ``function`` raises is raised here, in its place; what is under way ends before this generator
    is closed.

    Args:
        function: Called in another thread.
        items: Its arguments.
        workers: Threads, and results that wait.
    """
    with ThreadPoolExecutor(workers, "fcn-deploy-mapped") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
