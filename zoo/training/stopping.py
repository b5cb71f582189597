"""Stopping by a signal without losing work."""

import signal
from types import FrameType, TracebackType

from zoo.errors import Stopped


class StopSignal:
    """Turns SIGTERM and SIGINT into a request that the loop honours between two steps.

    This is a context manager for the main thread. A second signal of the same kind has its usual
    effect at once, so that a person is never locked in.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(
            signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler
        )

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._signum is not None

    def check(self) -> None:
        """Raises ``Stopped`` if a signal has arrived."""
        if self._signum is not None:
            raise Stopped(self._signum)
