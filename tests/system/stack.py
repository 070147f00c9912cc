"""The stack of docker/stack/compose.yaml as plain processes of this machine: its commands, its settings, its secrets in files.

Addresses of containers become ports of 127.0.0.1, and volumes become folders; everything else is as the compose file has it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.docker.manifests import DOCKER, create_secrets, read_compose
from tests.system.processes import free_port, make_environment, start_process, wait_until
from tests.system.tracking_servers import find_postgres_bin

SECRETS = "/run/secrets/"
REPLICA_COUNT = 2
# Faster than in production, so that a test need not wait.
FAST = {"FORECASTER_SERVING_POLL_S": "0.5", "FORECASTER_SERVING_RELOAD_S": "0.2", "FORECASTER_SERVING_GRACE_S": "3"}


class Part:
    """One process of the stack, which can be killed and started again."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command, self._folder, self._environment = list(command), folder, dict(environment)
        self._running: AbstractContextManager[subprocess.Popen[bytes]] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process."""
        assert self._running is None
        self._running = start_process(self._command, self._folder, log=self.log, **self._environment)
        self.process = self._running.__enter__()

    def kill(self) -> None:
        """Kills the process and its children, if it runs."""
        if self._running is not None:
            running, self._running, self.process = self._running, None, None
            running.__exit__(None, None, None)


class Postgres:
    """A PostgreSQL server with the databases of the stack; it runs as a user that is not root."""

    name = "postgres"

    def __init__(self, folder: Path, secrets: Path, port: int) -> None:
        programs = find_postgres_bin()
        assert programs is not None
        self._programs, self._folder, self._port = programs, folder, port
        self._user = "postgres" if os.geteuid() == 0 else None
        folder.mkdir()
        password = folder / "password"
        password.write_text((secrets / "postgres_password").read_text())
        if self._user is not None:
            for path in (folder, password):
                shutil.chown(path, self._user)
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "scram-sha-256", "--pwfile=password", "--no-sync")
        self.start()
        environment = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "SECRETS": str(secrets)}
        environment["PGPASSWORD"] = password.read_text().strip()
        subprocess.run(
            ["sh", DOCKER / "stack/postgres/databases.sh"], env=make_environment(**environment), check=True, timeout=120
        )

    def start(self) -> None:
        """Starts the server and waits for it."""
        options = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -F"
        self._run("pg_ctl", "-D", "data", "-w", "-t", "60", "-l", "log", "-o", options, "start")

    def kill(self) -> None:
        """Stops the server without a checkpoint, as a crash does."""
        with suppress(AssertionError):  # it does not run
            self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        completed = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=120,
        )
        assert completed.returncode == 0, f"{program} ended with {completed.returncode}"


class Stack:
    """All parts of the stack, in one folder."""

    def __init__(self, folder: Path, data_folder: Path, *, model: str) -> None:
        """Prepares the parts; starts PostgreSQL alone. `data_folder` must be readable by the user of PostgreSQL."""
        self.folder, self.secrets, self.state = folder, folder / "secrets", folder / "state"
        self._ports = {name: free_port() for name in ("postgres", "registry", "proxy", "replica-1", "replica-2")}
        self._model = model
        create_secrets(self.secrets, database=f"127.0.0.1:{self._ports['postgres']}")
        self.postgres = Postgres(data_folder / "postgres", self.secrets, self._ports["postgres"])
        self.state.mkdir()
        registry = self._environment("registry") | {
            "REGISTRY_HOST": "127.0.0.1",
            "REGISTRY_PORT": str(self._ports["registry"]),
            "REGISTRY_ARTIFACTS": str(folder / "artifacts"),
        }
        self.registry = Part("registry", [str(DOCKER / "start_registry.py")], folder, registry)
        self.follower = Part("follower", self._entrypoint("follower"), folder, self._environment("follower") | FAST)
        self.replicas = [
            Part(
                name,
                self._entrypoint("forecaster"),
                folder,
                self._environment("forecaster")
                | FAST
                | {"FORECASTER_SERVING_HOST": "127.0.0.1", "FORECASTER_SERVING_PORT": str(self._ports[name])}
                | {"FORECASTER_SERVING_PROXIES": "127.0.0.1"},
            )
            for name in ("replica-1", "replica-2")
        ]
        scheduler = ["-m", "pipelines", "schedule", "run", f"--root={self.state}"]
        self.scheduler = Part("scheduler", scheduler, folder, self._environment("scheduler"))
        self.proxy = self._build_proxy()

    @property
    def parts(self) -> list[Part | Postgres]:
        """All parts in the order in which they start."""
        return [self.postgres, self.registry, self.follower, *self.replicas, self.scheduler, self.proxy]

    @property
    def registry_url(self) -> str:
        """The address of the registry."""
        return f"http://127.0.0.1:{self._ports['registry']}"

    @property
    def replica_urls(self) -> list[str]:
        """The addresses of the replicas."""
        return [f"http://127.0.0.1:{self._ports[replica.name]}" for replica in self.replicas]

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self._ports['proxy']}"

    @property
    def training_environment(self) -> dict[str, str]:
        """The variables of the scheduler, and of a person who trains."""
        return self._environment("scheduler") | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}

    @property
    def monitoring_environment(self) -> dict[str, str]:
        """The variables of `monitor`."""
        return self._environment("monitor") | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}

    def read_secret(self, name: str) -> str:
        """Returns a secret."""
        return (self.secrets / name).read_text().strip()

    def wait_for_registry(self) -> None:
        """Waits until the registry responds."""
        wait_until(lambda: http_status(f"{self.registry_url}/health") == 200, pause=0.2)

    def _environment(self, service: str) -> dict[str, str]:
        replacements = {
            SECRETS: f"{self.secrets}/",
            "http://registry:5000": self.registry_url,
            "registry:5000": f"127.0.0.1:{self._ports['registry']}",
            "/var/lib/forecaster": str(self.folder / "models"),
        }
        environment = {}
        for name, value in read_compose()["services"][service]["environment"].items():
            for old, new in replacements.items():
                value = value.replace(old, new)
            environment[name] = value
        return environment | (
            {"FORECASTER_SERVING_MODEL": self._model} if "FORECASTER_SERVING_MODEL" in environment else {}
        )

    def _entrypoint(self, service: str) -> list[str]:
        command: list[str] = read_compose()["services"][service]["entrypoint"]
        assert command[0] == "python"
        return command[1:]

    def _build_proxy(self) -> Part:
        nginx = find_nginx()
        if nginx is None:
            command = ["-m", "tests.system.reverse_proxy", str(self._ports["proxy"]), *self.replica_urls]
            return Part("proxy", command, self.folder, {})
        path = self.folder / "nginx.conf"
        path.write_text(self._adapt_nginx((DOCKER / "stack/nginx/nginx.conf").read_text()))
        # start_process runs Python; it becomes nginx.
        program = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
        command = ["-c", program, nginx, "-c", str(path), "-p", str(self.folder), "-g", "daemon off;"]
        return Part("proxy", command, self.folder, {})

    def _adapt_nginx(self, text: str) -> str:
        (self.folder / "nginx").mkdir()
        servers = " ".join(f"server {url.removeprefix('http://')} max_fails=0;" for url in self.replica_urls)
        replacements = {
            " /tmp/": f" {self.folder}/nginx/",
            "listen 8080;": f"listen 127.0.0.1:{self._ports['proxy']};",
            "set $replicas forecaster:3000;": "set $replicas replicas;",
            "    server {": f"    upstream replicas {{ {servers} }}\n    server {{",
            "access_log /dev/stdout access;": f"access_log {self.folder}/access.log access;",
            "rate=50r/s": "rate=5000r/s",  # the clients of a test have one address
            "burst=200": "burst=5000",
        }
        for old, new in replacements.items():
            assert old in text, old
            text = text.replace(old, new)
        return f"user {'root' if os.geteuid() == 0 else os.environ.get('USER', 'nobody')};\n" + text


@contextmanager
def running_stack(folder: Path, data_folder: Path, *, model: str) -> Iterator[Stack]:
    """Starts all parts and waits until the registry responds; kills them at the end of the block."""
    stack = Stack(folder, data_folder, model=model)
    try:
        for part in stack.parts[1:]:
            assert isinstance(part, Part)
            part.start()
        stack.wait_for_registry()
        yield stack
    finally:
        for part in reversed(stack.parts):
            part.kill()


def find_nginx() -> str | None:
    """Returns the path of nginx; None if it is not installed."""
    return shutil.which("nginx") or next((str(path) for path in (Path("/usr/sbin/nginx"),) if path.exists()), None)


def http_status(url: str, **request: Any) -> int:
    """Returns the status of a response; 0 if there is none."""
    try:
        return httpx.get(url, timeout=10, **request).status_code
    except httpx.TransportError:
        return 0
