"""The identity of a process, by which runs that it left open are found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines.tracking.interrupted_runs import PROCESS_TAG, identify_process, make_process_tags

pytestmark = pytest.mark.integration  # it starts a process


def test_a_process_is_identified_while_it_runs() -> None:
    own = identify_process(os.getpid())
    assert own is not None
    assert own == identify_process(os.getpid())
    assert make_process_tags() == {PROCESS_TAG: str(own)}
    assert len(str(own).split()) == 3
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        other = identify_process(process.pid)
        assert other is not None
        assert (other.machine, other.pid) == (own.machine, process.pid)
        assert other.start != own.start
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert identify_process(process.pid) is None, "it has ended, and its parent has not read its exit code"
    assert identify_process(process.pid) is None
