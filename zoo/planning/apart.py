"""Plans in a process of its own, which ends as soon as the figures are known.

The compiler knows them after a tenth of its time (``programs.scheduled``), but nothing can stop it
then, except that its process ends.

    python -m zoo.planning.apart TOPOLOGY < CONFIG.json

prints what is done, a line each, and at last the plan as JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from zoo import building
from zoo import config as configs
from zoo.errors import UserError
from zoo.planning.chips import Slice, find_slice
from zoo.planning.plan import Plan, Say, make_plan


def plan_apart(config: ConfigDict, slice_: Slice, *, say: Say = lambda text: None) -> Plan:
    """Returns what ``make_plan`` does, without waiting for the machine code.

    Args:
        config: a checked config, as ``building.with_data`` returns it.
        slice_: the chips.
        say: is told what is done.

    Raises:
        UserError: as ``make_plan``.
    """
    command = [sys.executable, "-m", "zoo.planning.apart", slice_.name]
    found: dict[str, Any] = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(configs.to_json(config))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("{"):
                found = json.loads(line)
            else:
                say(line.rstrip("\n"))
    if "refused" in found:
        raise UserError(found["refused"])
    if not found:
        raise RuntimeError(f"exit code {process.returncode} from: {' '.join(command)}")
    return Plan(**found)


def main() -> None:
    """Plans what stands in the standard input."""
    jax.config.update("jax_platforms", "cpu")
    try:
        config, dataset = building.with_data(configs.from_json(sys.stdin.read()))
        slice_ = find_slice(sys.argv[1])
        plan = make_plan(config, dataset, slice_, say=_print, code=False)
        answer = dataclasses.asdict(plan)
    except UserError as error:
        answer = {"refused": str(error)}
    _print(json.dumps(answer))
    # The compiler's thread does not end before its time.
    os._exit(0)


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
