"""Shared by ``train.py`` and the ``zoo`` command: config overrides, errors and exit codes."""

import ast
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from zoo import storage
from zoo.errors import DamageWarning, NotWritten, Stopped, UserError, did_you_mean

USER_ERROR = 2
# The number that <sysexits.h> gives to an error of input and output.
DISK_ERROR = 74


def run_to_exit(function: Callable[[], None]) -> None:
    """Calls a function and ends the program.

    The exit code is 0 on success. It is 2 for an error that the user can fix, which is printed as
    one message, and 74 if the system refused to write a file, for example because the disk is full.
    It is 128 + the number of the signal if a signal has stopped the program: everything is saved,
    so a supervisor can start it again. This includes SIGPIPE, when the reader of the output has
    closed the pipe, as in ``zoo … | head``.
    """
    # Users cannot act on the messages of libraries, such as orbax's about a read-only folder. What
    # orbax logs as an error it raises as well.
    logging.set_verbosity(logging.FATAL)
    _silence_echoes()
    _show_damage_plainly()
    try:
        function()
        sys.stdout.flush()
    except BrokenPipeError:
        # Buffered output must go somewhere when the program ends.
        _discard(sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except NotWritten as error:
        _end(f"error: {error}", DISK_ERROR)
    except (UserError, flags.Error) as error:
        _end(f"error: {error}", USER_ERROR)
    except Stopped as stopped:
        _end(f"{stopped}; the state is saved: run the same command to resume", 128 + stopped.signum)
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        refused = storage.refusal(error)
        if refused is not None:
            _end(f"error: {storage.said(refused)}", DISK_ERROR)
        if isinstance(error, OSError) and error.filename is not None:
            _end(f"error: {storage.said(error)}", USER_ERROR)
        raise


def _end(message: str, code: int) -> NoReturn:
    """Prints the last words of a program and ends it."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard(1)
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        # The output lies on the full disk as well, so the exit code is all that can be said.
        _discard(2)
    if code == DISK_ERROR:
        # The threads of unfinished saves would complain while the interpreter ends.
        _discard(2)
    sys.exit(code)


def _discard(stream: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _silence_echoes() -> None:
    """Keeps threads of libraries from printing what the main thread is told as well.

    When a save fails, orbax raises the error in the main thread. Its other threads, and those of
    TensorStore, print tracebacks of the same error and of the event loop that it has closed, and
    asyncio those of the tasks that failed beside the first.
    """

    def is_echo(error: BaseException | None) -> bool:
        return error is not None and (
            str(error) == "Event loop is closed" or storage.refusal(error) is not None
        )

    def thread_hook(arguments: threading.ExceptHookArgs) -> None:
        if not is_echo(arguments.exc_value):
            threading.__excepthook__(arguments)

    def unraisable_hook(arguments: Any) -> None:
        if not is_echo(arguments.exc_value):
            sys.__unraisablehook__(arguments)

    def is_news(record: LogRecord) -> bool:
        return not record.getMessage().startswith("Task exception was never retrieved")

    threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
    getLogger("asyncio").addFilter(is_news)


def _show_damage_plainly() -> None:
    """Shows a ``DamageWarning`` as one line, without the place in the code."""
    others = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        if issubclass(category, DamageWarning):
            return f"warning: {message}\n"
        return others(message, category, *place, **more)

    warnings.formatwarning = formatted


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into other arguments and ``--config.section.field=value``.

    The value may also be the next argument.
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

    If a field is given twice, the last one counts.

    Raises:
        UserError: an override names a field that does not exist.
        flags.Error: a value has the wrong type.
    """
    from zoo.config import check_override

    changed = config.copy_and_resolve_references()
    for argument in overrides:
        if argument.startswith("--"):
            check_override(changed, argument.removeprefix("--config.").partition("=")[0])
    own = flags.FlagValues()
    argv = ["zoo", *_last_of_each(overrides)]
    config_flags.DEFINE_config_dict("config", changed, flag_values=own, sys_argv=argv)
    refuse_arguments(own(argv))
    return changed


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Returns the last override of each field: the library joins tuples that are given twice."""
    words: dict[str, list[str]] = {}
    field = ""
    for argument in overrides:
        if argument.startswith("--"):
            field = argument.partition("=")[0]
            words.pop(field, None)
        words.setdefault(field, []).append(argument)
    return [argument for given in words.values() for argument in given]


def refuse_arguments(rest: Sequence[str]) -> None:
    """Raises UserError if arguments are left on a command line after its flags are parsed."""
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags begin with --")


def run_name(given: str) -> str:
    """Returns a run's name: ``cnn`` for configs/cnn.py, ``cnn-full`` for its ``:full``."""
    path, _, variant = given.partition(":")
    return f"{Path(path).stem}-{variant}" if variant else Path(path).stem


def list_configs(folder: Path) -> str:
    """Returns the config files of a folder, each with the first line of its docstring."""
    lines = []
    for path in sorted(folder.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {folder.name}/{path.name:<20} {text.partition(chr(10))[0]}")
    return "\n".join(lines)


def list_fields(config: ConfigDict) -> str:
    """Returns every field of a config with its value and its allowed values."""
    from zoo.config import described

    rows = [(f"--config.{path}={value!r}", rule) for path, value, rule in described(config)]
    return "\n".join(f"  {shown}\n      {rule}" for shown, rule in rows)
