"""What ``train.py`` and the ``zoo`` command share: config overrides, errors and exit codes."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from zoo.config import check_override
from zoo.errors import Stopped, UserError, did_you_mean

USER_ERROR = 2


def run_to_exit(function: Callable[[], None]) -> None:
    """Calls a function and ends the program.

    Exit codes: 0: done; 2: an error that the user can mend, printed as one message; 128 + the
    signal's number: stopped by a signal, everything saved, so that a supervisor tries again; or
    whoever read what is printed has closed the pipe, as ``zoo … | head`` does.
    """
    # What libraries warn of (orbax of a folder opened to read) is nothing that a person can mend.
    logging.set_verbosity(logging.ERROR)
    try:
        function()
        sys.stdout.flush()
    except (UserError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stopped:
        print(f"{stopped}; the state is saved: the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # What is still buffered must go somewhere when the program ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides a command line into other arguments and ``--config.section.field=value``.

    The value may follow as an argument of its own.
    """
    others: list[str] = []
    overrides: list[str] = []
    kind = others
    for argument in arguments:
        if argument.startswith("--"):
            kind = overrides if argument.startswith("--config.") else others
        kind.append(argument)
    return others, overrides


def load_config(given: str) -> ConfigDict:
    """Loads a config file given as ``path`` or ``path:variant``.

    Raises:
        UserError: the file is absent, or has no such variant.
    """
    if not given:
        raise UserError("--config is missing: give a config file, such as configs/cnn.py")
    path = Path(given.partition(":")[0])
    if not path.is_file():
        found = [str(other) for other in path.parent.glob("*.py")]
        raise UserError(f"--config={path}: there is no such file.{did_you_mean(str(path), found)}")
    own = flags.FlagValues()
    argv = ["zoo", f"--config={given}"]
    config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=argv)
    own(argv)
    return own["config"].value


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies ``--config.section.field=value`` to a copy of a config.

    Raises:
        UserError: an override names no field.
        flags.Error: a value has the wrong type.
    """
    changed = config.copy_and_resolve_references()
    for argument in overrides:
        if argument.startswith("--"):
            check_override(changed, argument.removeprefix("--config.").partition("=")[0])
    own = flags.FlagValues()
    argv = ["zoo", *overrides]
    config_flags.DEFINE_config_dict("config", changed, flag_values=own, sys_argv=argv)
    refuse_arguments(own(argv))
    return changed


def refuse_arguments(rest: Sequence[str]) -> None:
    """Raises UserError for what is left of a command line when its flags are taken out."""
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags begin with --")


def run_name(given: str) -> str:
    """The default folder's name: ``cnn`` for configs/cnn.py, ``cnn-full`` for its ``:full``."""
    path, _, variant = given.partition(":")
    return f"{Path(path).stem}-{variant}" if variant else Path(path).stem
