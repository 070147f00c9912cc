"""Whether the server can listen on its port, which is checked before any process starts; and how signals stop it."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from serving.settings import Settings
from serving.supervisor import describe_port_error


def test_a_port_that_another_program_uses_is_one_line_with_another_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = describe_port_error(Settings(port=port))
    assert message is not None
    assert f"another program listening on port {port} of 127.0.0.1" in message
    assert "forecaster serve --port" in message
    assert "\n" not in message


def test_a_free_port_is_accepted_twice() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        settings = Settings(port=other.getsockname()[1])
    assert describe_port_error(settings) is None
    assert describe_port_error(settings) is None, "the check leaves the port free"


def test_an_address_of_another_machine_names_the_option() -> None:
    message = describe_port_error(Settings.model_validate({"host": "192.0.2.1", "without_keys": True}))
    assert message is not None
    assert "--host" in message


# A signal that interrupts the handler of another one, or the waiting thread, at any point. A process of its own, as it may block.
MANY_SIGNALS = """
import os, signal, threading
from serving.supervisor import stop_request_on_signals

def send():
    for _ in range(3000):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

with stop_request_on_signals() as stop:
    assert not stop.wait(0.0)
    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive():
        stop.wait(0.001)
    assert stop.wait(0.0) and stop.is_set()
print("stopped")
"""


@pytest.mark.integration
def test_signals_that_come_at_once_stop_it() -> None:
    result = subprocess.run(
        [sys.executable, "-c", MANY_SIGNALS], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "stopped\n"
