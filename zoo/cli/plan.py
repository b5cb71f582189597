"""``zoo plan``: what a config's step takes on chips that aren't there."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import commands
from zoo.errors import UserError
from zoo.files import write_atomically

HELP = """plan a run on a slice of TPUs before it is rented

Compiles the config's real train step ahead of time for the slice, and prints memory, time and
traffic. Fields are given as for train.py: --config.train.batch_size=256 --config.mesh.fsdp=-1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--config", required=True, help="a config file, such as configs/gpt.py")
    parser.add_argument(
        "--topology", required=True, help="chips and their shape, such as v5e:4x4 or v5p:4x4x4"
    )
    parser.add_argument(
        "--mesh",
        choices=("config", "auto"),
        default="config",
        help="auto: try the layouts that divide, and rank them; default: that of the config",
    )
    parser.add_argument("--json", metavar="FILE", help="write the plan, with auto the best one")
    parser.add_argument(
        "--budget",
        type=float,
        help="tokens, or examples, of the whole training; default: the config's steps",
    )
    parser.add_argument(
        "--tries", type=int, default=6, help="the most compilations of a search; default: 6"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile what was planned before")
    parser.add_argument(
        "--code",
        action="store_true",
        help="wait for the machine code too: ten times as long, and finds what only it refuses",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Plans and prints."""
    if options.tries < 1:
        raise UserError(f"--tries={options.tries} must be at least 1")
    if options.budget is not None and options.budget <= 0:
        raise UserError(f"--budget={options.budget:g} must be above 0")
    config = commands.override(commands.load_config(options.config), overrides)
    import jax

    from zoo import building, planning
    from zoo import config as configs
    from zoo.planning.apart import plan_apart

    # The program is for other devices; those of this machine would only be in the way.
    jax.config.update("jax_platforms", "cpu")
    slice_ = planning.find_slice(options.topology)
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.1f} s  {text}", file=sys.stderr, flush=True)

    config, dataset = building.with_data(configs.check(config))
    whole = options.code or options.topology.startswith("cpu:")

    def make_one(wanted: Any) -> planning.Plan:
        if whole:
            return planning.make_plan(wanted, dataset, slice_, say=say)
        return plan_apart(wanted, slice_, say=say)

    def make(wanted: Any) -> planning.Plan:
        if options.no_cache:
            return make_one(wanted)
        kind = "whole" if whole else "scheduled"
        return planning.cached_plan(wanted, slice_, lambda: make_one(wanted), kind=kind, say=say)

    lines: list[str] = []
    if options.mesh == "auto":
        plans = planning.search(config, dataset, slice_, make, tries=options.tries, say=say)
        best = plans[0]
    else:
        best = make(config)
        plans = [best]
        if not best.fits:
            lines = planning.what_would_fit(
                best, config, dataset, slice_, make, tries=options.tries
            )
    steps = building.lengths(config, dataset).steps
    _show(plans, best, lines, options.budget or steps * best.per_step)
    if options.json:
        write_atomically(Path(options.json), json.dumps(best.as_json(), indent=2) + "\n")


def _show(plans: Sequence[Any], best: Any, lines: Sequence[str], budget: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from zoo.planning.plan import gib, shown_mesh

    console = Console(soft_wrap=True, highlight=False)
    if len(plans) > 1:
        table = Table()
        for title in ("mesh", "fields", "fits", "GiB a chip", "s a step", "MFU"):
            table.add_column(title, justify="left" if title in ("mesh", "fields") else "right")
        for plan in plans:
            fields = " ".join(f"{path}={value}" for path, value in plan.settings.items())
            seconds = "" if plan.step_seconds is None else f"{plan.step_seconds:.4g}"
            share = "" if plan.mfu is None else f"{plan.mfu:.1%}"
            table.add_row(
                shown_mesh(plan.mesh), fields, "yes" if plan.fits else "no",
                gib(plan.bytes_per_chip["total"]), seconds, share,
            )  # fmt: skip
        console.print(table)
    held = best.bytes_per_chip
    console.print(f"{best.topology}, {best.chips} chips, mesh {shown_mesh(best.mesh)}")
    console.print(
        f"memory of a chip: {gib(held['total'])} of {gib(held['capacity'])} GiB; parameters "
        f"{gib(held['parameters'])}, optimizer {gib(held['optimizer'])}, state {gib(held['state'])}"
        f", temporaries {gib(held['temporaries'])}: {'fits' if best.fits else 'does not fit'}"
    )
    console.print(f"operations of a step: {best.flops_per_step:.4g}")
    if best.step_seconds is not None:
        sent = best.collective_bytes.items()
        collectives = ", ".join(f"{kind} {gib(size)} GiB" for kind, size in sent) or "none"
        console.print(f"collectives of a step, on each chip: {collectives}")
        parts = ", ".join(f"{name} {seconds:.4g}" for name, seconds in best.parts.items())
        console.print(
            f"a step: {best.step_seconds:.4g} s, MFU {best.mfu:.1%} (seconds by part: {parts})"
        )
        console.print(f"{best.tokens_per_second:,.0f} {best.unit} a second")
        hours = budget / best.tokens_per_second / 3600
        console.print(
            f"{budget:,.0f} {best.unit}: {hours:,.3g} hours, {hours * best.chips:,.3g} chip-hours"
        )
        if best.topology.startswith("cpu:"):
            console.print("The figures of virtual CPU devices are nominal: their times say nothing")
    for line in [*best.notes, *lines]:
        console.print(line)
