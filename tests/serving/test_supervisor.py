"""Whether the server can listen on its port, which is checked before any process starts."""

from __future__ import annotations

import socket

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
