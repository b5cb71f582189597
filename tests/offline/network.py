"""Makes the network unreachable for Python, except for this machine."""

import errno
import os
import socket
import sys
from typing import Any

HERE = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}


def cut_off() -> None:
    """From now on the process reaches no other machine. This cannot be undone.

    What tries gets the errors of a machine without a network.
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in HERE:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH), str(address))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and name not in HERE:
            raise socket.gaierror(socket.EAI_AGAIN, f"no network in the tests: {name}")
