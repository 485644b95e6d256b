"""Memory that tensors no longer use stays with the process for the next ones."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import resource, sys, threading
import torch
from models.freed import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        made = [torch.ones(number << 18) for number in range(1, 25)]
        del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def twice():  # in a thread, as Ray Train's workers; the second time is the one that counts
    faults()
    print(faults())

if sys.argv[1] == "keep":
    assert keep_freed()
thread = threading.Thread(target=twice)
thread.start()
thread.join()
"""
PAGES = sum(number << 20 for number in range(1, 25)) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_same_tensors_again_ask_the_system_for_no_pages() -> None:
    assert faults("keep") < PAGES / 100
    assert faults("plain") > PAGES  # without it: a good part of each of the twenty rounds


def faults(how: str) -> int:
    """Return the page faults of twenty rounds of tensors of 1 to 24 MiB."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)
