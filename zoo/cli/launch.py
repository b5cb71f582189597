"""``zoo launch``: starts the processes of one run on this machine."""

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from zoo.errors import UserError
from zoo.process import ADDRESS, COUNT, INDEX

HELP = """start several processes of one run on this machine

zoo launch -n 2 -- train.py --config configs/cnn.py starts two processes that train together. Each
line of their output begins with the number of the process. If one ends early, it is named and the
others are ended. SIGTERM and SIGINT are passed on to all of them."""

# How long the others may take to end by themselves, with a message, once one has died; and how long
# after they were asked to.
_GRACE_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments, which come before ``--``."""
    parser.usage = "zoo launch -n PROCESSES -- train.py --config …"
    parser.add_argument("-n", type=int, required=True, help="the number of processes")


def run(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs a command in several processes, and exits as they do.

    Args:
        options: the number of processes.
        command: the command after ``--``. A Python file is run by this Python.
    """
    if options.n < 1:
        raise UserError(f"-n {options.n} must be at least 1")
    if not command:
        raise UserError("zoo launch needs a command after --, as in: -- train.py --config …")
    words = [sys.executable, *command] if command[0].endswith(".py") else list(command)
    code = Launch(words, options.n).wait()
    if code:
        sys.exit(code)


class Launch:
    """The processes of one run on this machine, until ``wait`` returns."""

    def __init__(self, command: Sequence[str], count: int) -> None:
        """Starts the processes.

        Args:
            command: the command of each.
            count: the number of processes.

        Raises:
            UserError: the command cannot be started.
        """
        # A process's number and code come in the order in which the processes end.
        self._ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self._asked = False
        address = f"localhost:{_free_port()}"
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        lock = threading.Lock()
        for index in range(count):
            environment = {ADDRESS: address, COUNT: str(count), INDEX: str(index)}
            try:
                process = subprocess.Popen(
                    command,
                    env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    # Ctrl-C in a terminal reaches this process alone, which passes it on once.
                    start_new_session=True,
                )
            except OSError as error:
                self._send(signal.SIGKILL)
                raise UserError(f"{command[0]} cannot be started ({error.strerror})") from error
            self._processes.append(process)
            assert process.stdout is not None
            reader = threading.Thread(target=_copy, args=(process.stdout, index, lock), daemon=True)
            reader.start()
            self._readers.append(reader)
            threading.Thread(target=self._watch, args=(index,), daemon=True).start()

    def wait(self) -> int:
        """Returns the exit code of the first process that failed, or 0, when all have ended.

        The code of a process that a signal ended is 128 + the signal's number, as in a shell.
        """
        before = {
            signum: signal.signal(signum, self._pass_on)
            for signum in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return self._wait()
        finally:
            self._send(signal.SIGKILL)
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _wait(self) -> int:
        failed, left = 0, set(range(len(self._processes)))
        deadline, ending = float("inf"), [signal.SIGTERM, signal.SIGKILL]
        while left:
            try:
                # Signals are handled between two waits.
                index, code = self._ended.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() > deadline and ending:
                    self._say_stopped(left)
                    self._send(ending.pop(0))
                    deadline = time.monotonic() + _GRACE_SECONDS
                continue
            left.discard(index)
            # Its last words come before what is said about it.
            self._readers[index].join(timeout=2)
            if code and not self._asked:
                _say(f"process {index} {_how(code)}")
            if code and not failed:
                failed = code if code > 0 else 128 - code
                if left and not self._asked:
                    _say(f"the other {len(left)} will be ended")
                    deadline = time.monotonic() + _GRACE_SECONDS
        return failed

    def _watch(self, index: int) -> None:
        self._ended.put((index, self._processes[index].wait()))

    def _pass_on(self, signum: int, frame: object) -> None:
        self._asked = True
        self._send(signum)

    def _send(self, signum: int) -> None:
        for process in self._processes:
            # This asks first whether the process has ended, so no other one gets the signal.
            process.send_signal(signum)

    def _say_stopped(self, left: set[int]) -> None:
        """Names the processes that a signal has stopped, not ended: nobody hears them any more."""
        for index in sorted(left):
            try:
                stat = Path(f"/proc/{self._processes[index].pid}/stat").read_text(encoding="utf-8")
            except OSError:  # it has ended, or the system has no such files
                continue
            if stat.rpartition(")")[2].split()[0] == "T":
                _say(f"process {index} does not run, because a signal such as SIGSTOP stopped it")


def _copy(output: IO[str], index: int, lock: threading.Lock) -> None:
    """Copies the lines of a process to the terminal, each with the process's number."""
    for line in output:
        with lock:
            sys.stdout.write(f"[{index}] {line.rstrip()}\n")
            sys.stdout.flush()


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _say(words: str) -> None:
    print(f"zoo launch: {words}", file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port
