"""Stopping by a signal without losing work."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from zoo.errors import Stopped
from zoo.training.processes import Agreement


class StopSignal:
    """Turns SIGTERM and SIGINT into a request that the loop honours between two steps.

    This is a context manager for the main thread. A second signal of the same kind has its usual
    effect at once, so that a person is never locked in. Where several processes train, a signal to
    one of them stops all, at the same point of the run.
    """

    def __init__(self, agreement: Agreement | None = None) -> None:
        """Takes how the processes agree on where to stop; None for a single process."""
        self._signum: int | None = None
        self._agreement = agreement
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
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
        if self._agreement is not None:
            self._agreement.close()

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        if self._agreement is not None:
            self._agreement.ask(signum)
        signal.signal(
            signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler
        )

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived in this process."""
        return self._signum is not None

    def check(self) -> None:
        """Raises ``Stopped`` if a signal has arrived, in all processes at the same call."""
        signum = self._signum if self._agreement is None else self._agreement.check()
        if signum is not None:
            raise Stopped(signum)
