"""A few worker threads side by side, each doing its own kind of work in order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

DEPTH = 3  # submissions under way before the submitter has to wait


class Lanes:
    """Named threads for work that releases the interpreter lock: hashing, copying, writing.

    Jobs of one lane run one after another in the order submitted, so each lane may own state;
    lanes run at the same time. Use as a context manager.
    """

    def __init__(self, *names: str) -> None:
        self._lanes = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in names}
        self._pending: deque[list[Future[object]]] = deque()

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes.values():
            lane.shutdown(wait=True, cancel_futures=True)

    def submit(self, **jobs: Callable[[], object]) -> None:
        """Queues one job for each lane named; waits while too many are under way.

        Raises:
            Exception: whatever an earlier job raised.
        """
        self._pending.append([self._lanes[name].submit(job) for name, job in jobs.items()])
        while len(self._pending) > DEPTH:
            _finish(self._pending.popleft())

    def wait(self) -> None:
        """Waits for all jobs; raises what any of them raised."""
        while self._pending:
            _finish(self._pending.popleft())


def _finish(futures: list[Future[object]]) -> None:
    for future in futures:
        future.result()
