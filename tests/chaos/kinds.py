"""What a kind of injection is, and how its cases are counted."""

import contextlib
import dataclasses
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Kind:
    """One sort of injection.

    Attributes:
        name: a word for the command line.
        injected: what goes wrong, for the table.
        promised: what must come out, for the table.
        case: ``case(chance, folder)`` injects once, into the empty folder, and returns what came
            out in a word or two. It raises if the promise is broken.
        cases: the largest number of cases.
        seconds: how long a case may take before it counts as one without an end.
    """

    name: str
    injected: str
    promised: str
    case: Callable[[random.Random, Path], str]
    cases: int
    seconds: int = 60


@dataclasses.dataclass
class Count:
    """What came out of the cases of a kind.

    Attributes:
        kind: the kind.
        outcomes: the number of survived cases by what came out.
        broken: the other cases: number and error.
    """

    kind: Kind
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    broken: list[tuple[int, Exception]] = dataclasses.field(default_factory=list)

    @property
    def tried(self) -> int:
        """Number of cases."""
        return self.outcomes.total() + len(self.broken)


def chance_of(kind: Kind, seed: int, number: int) -> random.Random:
    """Returns the random generator of a case."""
    return random.Random(f"{kind.name}/{seed}/{number}")


def run_kind(kind: Kind, seed: int, folder: Path, seconds: float, first: int = 0) -> Count:
    """Runs cases of a kind until their number or the time is used up; at least one.

    Args:
        kind: the kind.
        seed: the seed of all cases.
        folder: a folder for the files of the cases; those of a broken case stay.
        seconds: when no other case begins.
        first: the number of the first case.
    """
    count, end = Count(kind), time.monotonic() + seconds
    for number in range(first, first + kind.cases):
        if number > first and time.monotonic() > end:
            break
        own = folder / kind.name / str(number)
        own.mkdir(parents=True)
        try:
            with _ends_after(kind.seconds):
                outcome = kind.case(chance_of(kind, seed, number), own)
        except Exception as error:  # noqa: BLE001 - whatever it is, the table counts it
            count.broken.append((number, error))
        else:
            count.outcomes[outcome] += 1
            shutil.rmtree(own)
    return count


@contextlib.contextmanager
def _ends_after(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
