"""Trains what a config describes, and resumes where the same command stopped.

python train.py --config configs/cnn.py
python train.py --config configs/cnn.py --config.train.steps=20
python train.py --config configs/cnn.py --help
"""

import sys
from pathlib import Path

from absl import flags

import zoo
from zoo import commands

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A config file, such as configs/cnn.py or configs/cnn.py:full. Any field is set with "
    "--config.section.field=value; --help after it lists the fields.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder, or an address such as gs://bucket/run. Default: runs/<config>, or the next "
    "free runs/<config>-2.",
)
RESTART = flags.DEFINE_bool("restart", False, "Move the run in the folder aside and begin anew.")
EXTEND = flags.DEFINE_bool(
    "extend", False, "Continue a run whose learning rate depends on its length, which has changed."
)
HELP = flags.DEFINE_bool("help", False, "List the configs, or with --config that config's fields.")


def main() -> None:
    """Parses the command line and trains."""
    others, overrides = commands.split_overrides(sys.argv)
    commands.refuse_arguments(flags.FLAGS(["--help" if a == "-h" else a for a in others]))
    given = CONFIG.value or ""
    if HELP.value and not given:
        print(f"{__doc__}\n{flags.FLAGS.main_module_help()}\n\nconfigs:")
        print(commands.list_configs(Path(__file__).parent / "configs"))
        return
    config = commands.override(commands.load_config(given), overrides)
    if HELP.value:
        print(f"{given}: its fields, their values, and what each may be\n")
        print(commands.list_fields(config))
        return
    from zoo.config import check

    zoo.run(
        check(config),
        WORKDIR.value,
        name=commands.run_name(given),
        restart=RESTART.value,
        extend=EXTEND.value,
    )


if __name__ == "__main__":
    commands.run_to_exit(main)
