"""The follower, with a fake registry instead of MLflow."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest

from forecaster.errors import BundleDamaged, MissingPackage, NoSuchModel
from forecaster.registry.registry import BundleVersion
from serving.deployment import follower, releases, status
from serving.deployment.follower import (
    ChildInstaller,
    FollowTarget,
    InstallFailed,
    InstallReport,
    compute_delay,
    find_update,
    follow,
    install_or_reject,
    install_version,
    lock_slot,
    main,
)
from serving.deployment.launcher import LAUNCHER_VARIABLE
from serving.settings import Settings
from tests.serving.conftest import load_stub, publish_stub, write_stub
from tests.system.processes import CHECKOUT, make_environment, start_process, wait_until


class FakeRegistry:
    """A registry of bundles in folders; `champion` is the version of the alias."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.champion: BundleVersion | None = None
        self.down = False
        self.fetch_count = 0

    def promote(self, number: str, *, shift: float) -> None:
        digest = write_stub(self.folder / number, shift=shift)
        self.champion = BundleVersion("sales", number, digest, None)

    def resolve(self, name: str, alias: str) -> BundleVersion:
        if self.down:
            raise ConnectionError("the registry is down")
        if self.champion is None or (name, alias) != ("sales", "champion"):
            raise NoSuchModel(f"There is no {alias} of {name}.", where=name)
        return self.champion

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        self.fetch_count += 1
        return Path(shutil.copytree(self.folder / version.number, into))


class StopFollowing(Exception):
    """Ends `follow`, which otherwise runs forever."""


@pytest.fixture
def fake_registry(tmp_path: Path) -> FakeRegistry:
    return FakeRegistry(tmp_path / "registry")


@pytest.fixture
def followed_model(slot_folder: Path) -> FollowTarget:
    return FollowTarget("sales", "champion", slot_folder, keep=2)


def run_follower(registry: FakeRegistry, target: FollowTarget, *actions: object) -> Iterator[str | None]:
    """Runs `follow` with one action between two polls, and returns the deployed version after each poll."""
    versions: list[str | None] = []
    remaining_actions = iter(actions)

    def pause(_: float) -> None:
        release = releases.current_release(target.slot)
        versions.append(release.version if release else None)
        for action in remaining_actions:
            assert callable(action)
            action()
            return
        raise StopFollowing

    with pytest.raises(StopFollowing):
        follow(
            lambda: registry,
            target,
            install=lambda version: install_or_reject(registry, version, target, verify=load_stub),
            poll_s=1,
            retry_s=1000,
            sleep=pause,
        )
    return iter(versions)


def test_each_version_is_deployed_once(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    fake_registry.promote("1", shift=1.0)
    version = find_update(fake_registry, followed_model)
    assert version is not None
    install_version(fake_registry, version, followed_model, verify=load_stub)
    assert find_update(fake_registry, followed_model) is None
    fake_registry.promote("2", shift=2.0)
    assert find_update(fake_registry, followed_model) == fake_registry.champion


def test_the_follower_survives_any_registry_failure(fake_registry: FakeRegistry, followed_model: FollowTarget) -> None:
    def stop_registry() -> None:
        fake_registry.down = True

    def restart_registry() -> None:
        fake_registry.down = False

    versions = run_follower(
        fake_registry,
        followed_model,
        lambda: fake_registry.promote("1", shift=1.0),
        stop_registry,
        lambda: fake_registry.promote("2", shift=2.0),
        restart_registry,
    )
    assert list(versions) == [None, "1", "1", "1", "2"]


def test_a_bad_bundle_is_rejected_once_and_the_next_good_one_is_deployed(
    fake_registry: FakeRegistry, followed_model: FollowTarget, caplog: pytest.LogCaptureFixture
) -> None:
    def promote_bad() -> None:
        fake_registry.promote("2", shift=2.0)
        (fake_registry.folder / "2" / "manifest.json").write_text('{"bad": 1}')  # which changes its digest, too

    fake_registry.promote("1", shift=1.0)
    versions = run_follower(
        fake_registry, followed_model, promote_bad, lambda: None, lambda: fake_registry.promote("3", shift=3.0)
    )
    assert list(versions) == ["1", "1", "1", "3"]
    assert fake_registry.fetch_count == 3
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert not [entry for entry in (followed_model.slot / "releases").iterdir() if entry.name.startswith(".")]


def test_a_blend_without_its_package_is_rejected_once(
    fake_registry: FakeRegistry, followed_model: FollowTarget, caplog: pytest.LogCaptureFixture
) -> None:
    def verify(_: Path) -> NoReturn:
        raise MissingPackage("Expected the package 'statsforecast'.")

    fake_registry.promote("1", shift=0.0)
    polls = iter(range(3))

    def pause(_: float) -> None:
        if next(polls, None) is None:
            raise StopFollowing

    with pytest.raises(StopFollowing):
        follow(
            lambda: fake_registry,
            followed_model,
            install=lambda version: install_or_reject(fake_registry, version, followed_model, verify=verify),
            poll_s=1,
            retry_s=1000,
            sleep=pause,
        )
    assert fake_registry.fetch_count == 1, "it is not fetched again at every poll"
    assert releases.current_release(followed_model.slot) is None
    assert "Expected the package 'statsforecast'" in caplog.text


def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new_release(
    fake_registry: FakeRegistry, followed_model: FollowTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_registry.promote("1", shift=1.0)
    assert fake_registry.champion is not None
    install_version(fake_registry, fake_registry.champion, followed_model, verify=load_stub)
    before = releases.current_release(followed_model.slot)
    fake_registry.promote("2", shift=2.0)

    def kill(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    for owner, name in ((Path, "rename"), (Path, "symlink_to"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            with pytest.raises(KeyboardInterrupt):
                install_version(fake_registry, fake_registry.champion, followed_model, verify=load_stub)
        assert releases.current_release(followed_model.slot) == before
    install_version(fake_registry, fake_registry.champion, followed_model, verify=load_stub)
    release = releases.current_release(followed_model.slot)
    assert release is not None
    assert release.version == "2"


def test_a_store_that_returns_a_different_bundle_is_rejected(
    fake_registry: FakeRegistry, followed_model: FollowTarget
) -> None:
    fake_registry.promote("1", shift=1.0)
    assert fake_registry.champion is not None
    version = fake_registry.champion._replace(digest="0" * 64)
    with pytest.raises(BundleDamaged):
        install_version(fake_registry, version, followed_model, verify=load_stub)
    assert releases.current_release(followed_model.slot) is None


def test_the_follower_without_a_registry_explains_its_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORECASTER_SERVING_REGISTRY", raising=False)
    assert main([]) == 2
    assert main(["--twice"]) == 2


def test_polls_are_spread_and_rarer_while_the_registry_does_not_respond(
    fake_registry: FakeRegistry, followed_model: FollowTarget
) -> None:
    def delays(poll_s: float, at: float) -> list[float]:
        return [
            compute_delay(poll_s, failures=count, uniform=lambda low, high: low + at * (high - low))
            for count in (0, 1, 2, 3, 99)
        ]

    assert delays(5.0, 0.5) == [5, 10, 20, 30, 30], "no longer than half a minute"
    assert delays(60.0, 0.5) == [60, 60, 60, 60, 60], "but never more often than without failures"
    assert delays(5.0, 0.0)[0] == pytest.approx(4.0)
    assert delays(5.0, 1.0)[0] == pytest.approx(6.0)
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        fake_registry.down = len(waits) < 4
        if len(waits) == 6:
            raise StopFollowing

    fake_registry.promote("1", shift=1.0)
    fake_registry.down = True
    with pytest.raises(StopFollowing):
        follow(lambda: fake_registry, followed_model, install=lambda _: None, poll_s=1, retry_s=1000, sleep=pause)
    assert [round(wait / 2.0**power) for wait, power in zip(waits, (1, 2, 3, 4, 0, 0), strict=True)] == [1] * 6


def test_a_version_that_the_slot_still_has_is_not_fetched_again(
    fake_registry: FakeRegistry, followed_model: FollowTarget
) -> None:
    fake_registry.promote("1", shift=1.0)
    first = fake_registry.champion

    def roll_back() -> None:
        fake_registry.champion = first

    versions = run_follower(
        fake_registry, followed_model, lambda: fake_registry.promote("2", shift=2.0), roll_back, lambda: None
    )
    assert list(versions) == ["1", "2", "1", "1"]
    assert fake_registry.fetch_count == 2


# Child processes that deploy


def run_once(registry: FakeRegistry, slot: Path, monkeypatch: pytest.MonkeyPatch) -> InstallReport:
    """Runs what a child process runs, in this process, and returns its report."""
    settings = Settings(slot=slot, registry="http://127.0.0.1:9", model="sales")
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(follower, "_connect_with_mlflow", lambda _: registry)
    monkeypatch.setattr(follower.signal, "signal", lambda *_: None)
    monkeypatch.setattr("serving.log_format.configure_logging", lambda: None)
    reading, writing = os.pipe()
    code = main(["--once", f"--report={writing}"])
    with os.fdopen(reading, "rb") as reports:
        report = InstallReport.model_validate_json(reports.read())
    assert code == (0 if report == InstallReport() else 1)
    return report


def test_a_child_reports_what_it_did(
    fake_registry: FakeRegistry, slot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "verify_on_all_engines", load_stub)
    assert "no_such_model" in str(run_once(fake_registry, slot_folder, monkeypatch).failure)
    fake_registry.promote("1", shift=1.0)
    assert run_once(fake_registry, slot_folder, monkeypatch) == InstallReport()
    release = releases.current_release(slot_folder)
    assert release is not None
    assert release.version == "1"
    fake_registry.promote("2", shift=2.0)
    (fake_registry.folder / "2" / "manifest.json").write_text('{"bad": 1}')
    assert str(run_once(fake_registry, slot_folder, monkeypatch).rejection).startswith("bundle_damaged")
    fake_registry.down = True
    assert run_once(fake_registry, slot_folder, monkeypatch) == InstallReport(failure="ConnectionError")
    assert releases.current_release(slot_folder) == release


class ScriptedChild:
    """A child process that reports without doing anything."""

    report = b""
    commands: ClassVar[list[tuple[Sequence[str], dict[str, str]]]] = []

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str], pass_fds: Sequence[int], start_new_session: bool
    ) -> None:
        assert start_new_session, "the child ends its group if the follower is killed"
        self.commands.append((command, env))
        os.write(pass_fds[0], self.report)

    def wait(self) -> int:
        return -9

    def poll(self) -> int:
        return -9


def test_the_follower_reads_the_report_of_the_child(
    slot_folder: Path, followed_model: FollowTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower.subprocess, "Popen", ScriptedChild)
    settings = Settings(slot=slot_folder, registry="http://127.0.0.1:9", model="sales", shadow="next", ledger="on")
    shadow = followed_model._replace(alias="next", slot=slot_folder / "shadow")
    installer, version = ChildInstaller(settings, shadow), BundleVersion("sales", "1", "0" * 64, None)
    for report, expected in ((b"{}", None), (b'{"rejection": "bundle_damaged: cut"}', "bundle_damaged: cut")):
        monkeypatch.setattr(ScriptedChild, "report", report)
        assert installer.install(version) == expected
    for report, reason in ((b'{"failure": "OSError"}', "OSError"), (b"", "the process .* ended with -9")):
        monkeypatch.setattr(ScriptedChild, "report", report)
        with pytest.raises(InstallFailed, match=reason):
            installer.install(version)
    command, environment = ScriptedChild.commands[-1]
    assert command[1:4] == ["-m", "serving.deployment.follower", "--once"]
    assert environment[LAUNCHER_VARIABLE] == str(os.getpid())
    child_settings = Settings.from_environment(
        {name: value for name, value in environment.items() if name.startswith("FORECASTER_SERVING_")}
    )
    assert (child_settings.alias, child_settings.slot) == ("next", slot_folder / "shadow")
    installer.stop()


@pytest.mark.integration
def test_a_child_ends_with_a_follower_that_is_killed(slot_folder: Path, tmp_path: Path) -> None:
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:

        def accept() -> None:  # a registry that never responds
            with suppress(OSError):
                while True:
                    accepted.append(silent.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        registry = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings(slot=slot_folder, registry=registry, model="sales")
        program = (
            "import os\n"
            "from forecaster.registry.version import BundleVersion\n"
            "from serving.deployment.follower import ChildInstaller, FollowTarget\n"
            "from serving.settings import Settings\n"
            "settings = Settings.from_environment(os.environ)\n"
            "target = FollowTarget('sales', 'champion', settings.slot, 3)\n"
            "ChildInstaller(settings, target).install(BundleVersion('sales', '1', '0' * 64, None))\n"
        )
        log = tmp_path / "follower.log"
        extra = {**settings.to_environment(), "HOME": str(tmp_path), "MLFLOW_HTTP_REQUEST_TIMEOUT": "100"}
        process = stack.enter_context(start_process(["-c", program], tmp_path, log=log, **extra))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: bool(accepted), seconds=60)
        child = int(children.read_text().split()[0])
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        wait_until(lambda: not is_running(child), seconds=10)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Followers that share a slot


def test_followers_of_one_slot_take_turns(slot_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered: list[str] = []

    def follow_second() -> None:
        with lock_slot(slot_folder):
            entered.append("second")

    with caplog.at_level(logging.INFO), lock_slot(slot_folder):
        thread = threading.Thread(target=follow_second, daemon=True)
        thread.start()
        wait_until(lambda: "another process follows" in caplog.text, seconds=5)
        entered.append("first")
    thread.join(5)
    assert entered == ["first", "second"]


def test_a_slot_that_cannot_be_locked_is_followed(
    slot_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(follower.locks, "open_locked", refuse)
    with lock_slot(slot_folder):
        assert "the slot cannot be locked" in caplog.text


@pytest.mark.integration
def test_one_of_two_followers_polls_and_the_other_takes_over(slot_folder: Path, tmp_path: Path) -> None:
    release = publish_stub(slot_folder)
    version = {"name": release.name, "version": release.version, "tags": [{"key": "digest", "value": release.digest}]}
    clients: list[int] = []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            clients.append(int(self.headers["X-MLFLOW-WORKSPACE"]))  # which names the follower
            content = json.dumps({"model_version": version}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    settings = Settings(
        slot=slot_folder, registry=f"http://127.0.0.1:{server.server_port}", model=release.name, poll_s=0.05
    )
    command = ["-m", "serving.deployment.follower"]
    with ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)

        def start(number: int) -> subprocess.Popen[bytes]:
            extra = {**settings.to_environment(), "MLFLOW_WORKSPACE": str(number), "HOME": str(tmp_path)}
            return stack.enter_context(start_process(command, tmp_path, log=tmp_path / f"{number}.log", **extra))

        first = start(1)
        wait_until(lambda: len(clients) >= 3, seconds=20)
        start(2)
        wait_until(lambda: "another process follows" in (tmp_path / "2.log").read_text(), seconds=20)
        count = len(clients)
        wait_until(lambda: len(clients) >= count + 3, seconds=20)
        assert set(clients) == {1}
        first.send_signal(signal.SIGKILL)
        wait_until(lambda: clients[-1] == 2, seconds=20)
        assert status.compute_follower_status(slot_folder, poll_s=0.05).behind is None


@pytest.mark.integration
def test_the_follower_imports_no_package_that_needs_much_memory() -> None:
    program = (
        "import sys, serving.deployment.follower\n"
        "sys.exit(', '.join({'mlflow', 'torch', 'pandas', 'numpy', 'starlette', 'bentoml'} & set(sys.modules)) or 0)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env=make_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
