"""Wrong values in the fields of the configs: refused by path, or the run can be built."""

import random
from pathlib import Path

from absl import flags

from chaos.kinds import Kind
from zoo import building, commands, sizing
from zoo.config import check, flatten
from zoo.errors import UserError
from zoo.training.layout import Layout
from zoo.training.settings import CONFIG_FIELDS

ROOT = Path(__file__).parents[2]
WRONG = ("text", "-1", "0", "1", "0.5", "10**9", "2**63", "1e30", "nan", "inf", "True", "None",
         "()", "(1,)", "(0, -1)", "''", "'\\x00'", "unknown", "1e-30", "13", "7")  # fmt: skip


def wrong_value(chance: random.Random, folder: Path) -> str:
    """One field of one config has a value that it may not have, or that does not fit the others."""
    config = chance.choice(sorted((ROOT / "configs").glob("*.py")))
    made = commands.load_config(str(config))
    path = chance.choice(sorted(flatten(made)))
    value = chance.choice(WRONG)
    # As the shell and Python would have worked it out.
    value = {"10**9": str(10**9), "2**63": str(2**63)}.get(value, value)
    if chance.random() < 0.05:
        path = path[:-1] + chance.choice("xyz")
    given = f"--config.{path}={value}"
    try:
        filled, dataset = building.with_data(check(commands.override(made, [given])))
        parts = building.build(filled, dataset)
        mesh = building.mesh_of(parts.settings)
        building.check_divisible(parts.settings, Layout(mesh), CONFIG_FIELDS)
        told = sizing.Given(flatten(filled), CONFIG_FIELDS)
        layout, _ = sizing.laid_out(parts, mesh, told)
        sizing.check(parts, layout, told)
    except (UserError, flags.Error) as error:
        said = str(error)
        last = path.rpartition(".")[2]
        assert last in said or "." in said, (
            f"{config.name} {given}: refused without a field: {said}"
        )
        return "refused by name"
    except Exception as error:
        raise AssertionError(f"{config.name} {given}: {type(error).__name__}: {error}") from error
    else:
        return "accepted, and can be built"
    # A value may make another field the wrong one; some field is named in any case.
    fields = {name.rpartition(".")[2] for name in flatten(made)} | {path.rpartition(".")[2]}
    assert any(name in said for name in fields), f"{config.name} {given}: no field in: {said}"
    return "refused by name"


def kinds() -> list[Kind]:
    """Returns the kind of wrong values."""
    return [
        Kind(
            "configs",
            "fields of every config: wrong types, negative, zero, huge, not finite, unknown",
            "refused by name before an array is made, or the run can be built",
            wrong_value,
            3000,
        )
    ]
