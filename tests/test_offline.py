"""The network is unreachable in every test (see ``conftest.py``); here that this is so."""

import socket
import subprocess
import sys

import pytest
from chaos.runs import ROOT, command

TRY = """
import socket
try:
    socket.create_connection(("example.org", 80), timeout=5)
except OSError as error:
    print("unreachable", type(error).__name__)
"""


def test_no_test_reaches_another_machine():
    with pytest.raises(socket.gaierror, match="no network in the tests"):
        socket.create_connection(("example.org", 80), timeout=5)
    with socket.socket() as made, pytest.raises(OSError, match="unreachable"):
        made.connect(("192.0.2.1", 80))  # an address for documentation (RFC 5737)


def test_no_process_of_a_test_does_either():
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=True)
    assert done.stdout == "unreachable gaierror\n"


def test_a_config_trains_and_is_asked_without_a_network(tmp_path):
    run = tmp_path / "run"
    train = [*command(run, "forecast"), "--config.train.steps=2", "--config.checkpoint.every=2"]
    for arguments in (train, ["-m", "zoo.cli", "evaluate", f"--workdir={run}"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "report.html").is_file()
