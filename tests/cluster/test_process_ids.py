import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from cluster import process_ids

# A session whose leader starts a child that will not hear of SIGTERM.
LEADER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def leader():
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    for pid in (child, process.pid):
        if process_ids.look(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)
    process.stdout.close()


def test_a_process_is_known_by_its_start(leader):
    process, child = leader
    found = process_ids.look(process.pid)
    assert process_ids.alive(found)
    assert found.session == process.pid
    assert {p.pid for p in process_ids.members(found)} == {process.pid, child}
    reused = replace(found, started=found.started - 1)
    assert not process_ids.alive(reused)
    assert process_ids.members(reused) == []
    process_ids.end([reused], patience_s=0.1)
    assert process_ids.alive(found), "another process with the same id was ended"


def test_a_session_is_ended_also_when_its_leader_was_killed(leader):
    process, child = leader
    found = process_ids.look(process.pid)
    process.kill()
    process.wait(10)
    assert not process_ids.alive(found)
    assert [p.pid for p in process_ids.members(found)] == [child]
    started_s = time.monotonic()
    process_ids.end([found], patience_s=0.5)
    assert process_ids.members(found) == []
    assert time.monotonic() - started_s < 10
    process_ids.end([found], patience_s=0.5)


def test_odd_names_are_read():
    line = "17 (a) b (c) S 1 17 9 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4242 0"
    assert process_ids.parse(line) == process_ids.ProcessId(
        pid=17, started=4242, session=9, state="S"
    )
    for text in ("", "17", "17 (a) S 1"):
        with pytest.raises(ValueError, match="no line"):
            process_ids.parse(text)
    assert process_ids.look(0) is None
