"""``python -m tests.chaos``: see ``--help``."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]


def main() -> int:
    """Runs kinds of injections one after the other and says what came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument(
        "--seconds", type=float, default=150, help="for all kinds together, but one case of each"
    )
    parser.add_argument("--only", default="", metavar="KIND,KIND", help="kinds; default: all")
    parser.add_argument("--families", default="", metavar="NAME,NAME", help="for real runs")
    parser.add_argument("--case", type=int, help="the number of a case, to repeat it")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into a page")
    parser.add_argument("--soak", type=int, metavar="STEPS", help="watch one long run in place")
    given = parser.parse_args()

    # What the runs compile is kept; the tests' own settings of XLA hold for the rest.
    import conftest  # noqa: F401
    from families import TINY

    from chaos import inputs, page, runs, settings, soak
    from chaos.kinds import run_kind

    folder = Path(tempfile.mkdtemp(prefix="zoo-chaos-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    if given.soak:
        return soak.soak(folder, given.soak, given.write)
    families = given.families.split(",") if given.families else sorted(TINY)
    if unknown := set(families) - set(TINY):
        parser.error(f"{sorted(unknown)}: the families are {sorted(TINY)}")
    kinds = [*settings.kinds(), *inputs.kinds(), *runs.kinds(folder, families)]
    if given.only:
        wanted = given.only.split(",")
        if unknown := set(wanted) - {kind.name for kind in kinds}:
            parser.error(f"{sorted(unknown)}: the kinds are {[kind.name for kind in kinds]}")
        kinds = [kind for kind in kinds if kind.name in wanted]
    end, counts = time.monotonic() + given.seconds, []
    for index, kind in enumerate(kinds):
        share = (end - time.monotonic()) / (len(kinds) - index)
        seconds = 0.0 if given.case is not None else share
        count = run_kind(kind, given.seed, folder, seconds, first=given.case or 0)
        counts.append(count)
        print(page.line(count), flush=True)
        for number, error in count.broken:
            print(
                f"  broken: --only {kind.name} --seed {given.seed} --case {number}: "
                f"{type(error).__name__}: {str(error)[:600]}",
                flush=True,
            )
    if given.write:
        page.write(given.write, counts, given.seed)
    broken = sum(len(count.broken) for count in counts)
    print(f"{sum(count.tried for count in counts)} cases, {broken} broken; files in {folder}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
