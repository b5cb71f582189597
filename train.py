"""Trains what a config describes, and goes on where the same command stopped.

python train.py --config configs/cnn.py
python train.py --config configs/cnn.py --config.train.steps=20
"""

import sys

from absl import app, flags

import zoo
from zoo import commands
from zoo.config import check

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A config file, such as configs/cnn.py or configs/cnn.py:full. Any field is set with "
    "--config.section.field=value; the file config.json of a run shows them all.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder. Default: runs/<config>, or the next free runs/<config>-2."
)
RESTART = flags.DEFINE_bool("restart", False, "Move the run in the folder aside and begin anew.")
EXTEND = flags.DEFINE_bool(
    "extend", False, "Continue a run whose learning rate depends on its length, which has changed."
)


def main() -> None:
    """Parses the command line and trains."""
    app.define_help_flags()
    others, overrides = commands.split_overrides(sys.argv)
    commands.refuse_arguments(flags.FLAGS(others))
    given = CONFIG.value or ""
    config = check(commands.override(commands.load_config(given), overrides))
    zoo.run(
        config,
        WORKDIR.value,
        name=commands.run_name(given),
        restart=RESTART.value,
        extend=EXTEND.value,
    )


if __name__ == "__main__":
    commands.run_to_exit(main)
