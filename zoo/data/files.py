"""Files and their names, whatever stands in them."""

import errno
import os
import stat
from pathlib import Path

from zoo.errors import UserError

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shown(path: str | Path) -> str:
    """Returns a path for a message: what cannot be printed is escaped.

    A name on Linux is any bytes. Those that are not UTF-8 would end a program when they are
    printed, and control characters would change the terminal.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))


def check_file(path: str | Path, error: type[UserError], field: str = "") -> None:
    """Raises an error that names the path, unless it is a file that can be opened.

    FIFOs, sockets and devices are refused because opening one may wait forever.

    Args:
        path: the path.
        error: the class of the error.
        field: the field that gives the path, if one does.
    """
    name = f"{field}={shown(path)!r}" if field else shown(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as reason:
        raise error(f"{name}: there is no such file") from reason
    except (OSError, ValueError) as reason:
        raise error(f"{name} cannot be opened: {reason_of(reason)}") from reason
    if stat.S_ISDIR(mode):
        raise error(f"{name} is a folder, not a file")
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise error(f"{name} is {kind}, not a file")


def check_folder(path: str | Path, error: type[UserError]) -> None:
    """Raises an error that names ``data.path``, unless it is a folder that can be listed.

    Args:
        path: the path.
        error: the class of the error.
    """
    try:
        os.scandir(path).close()
    except FileNotFoundError as reason:
        raise error(f"data.path={shown(path)!r}: there is no such folder") from reason
    except NotADirectoryError as reason:
        raise error(f"data.path={shown(path)!r} is not a folder") from reason
    except (OSError, ValueError) as reason:
        raise error(f"data.path={shown(path)!r} cannot be opened: {reason_of(reason)}") from reason


def reason_of(error: Exception) -> str:
    """Returns why a file cannot be opened, in the system's words and without its name."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def leads_nowhere(error: OSError) -> bool:
    """Returns whether a path is a link to nothing, or to itself."""
    return isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP
