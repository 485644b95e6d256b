"""What runs in a decode worker process; `ingest.decoders` starts it and speaks with it."""

import ctypes
import json
import mmap
import os
import queue
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np

import ingest.decode  # noqa: F401  loaded before the first request, which then need not wait for it
from ingest.augment import Cut
from ingest.decode_job import QUEUED, SLOTS, Pair, pair_in
from ingest.objects import Root
from ingest.reader import fetch, shown

PR_SET_PDEATHSIG = 1
Work = tuple[dict[str, Any], Future[memoryview]]


def main() -> None:
    """Answer requests from standard input until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent, which ends this one
    line = sys.stdin.buffer.readline()
    if not line:
        return
    setup = json.loads(line)
    _end_with(setup["parent"])
    cv2.setNumThreads(1)
    memory = np.frombuffer(mmap.mmap(setup["memory"], 0), np.uint8)
    slots = [pair_in(memory[k * setup["slot"] :], setup["shapes"]) for k in range(SLOTS)]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(SLOTS):
        free.put(slot)
    work: queue.SimpleQueue[Work] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(work, free), daemon=True).start()
    _say(answers, {"ready": os.getpid()})
    while True:
        request, payload = work.get()
        slot = free.get()
        answer = _answer(request, payload, slots[slot])
        if "error" in answer:
            free.put(slot)
        else:
            answer["slot"] = slot
        _say(answers, {"job": request["job"], **answer})


def _answer(request: dict[str, Any], payload: Future[memoryview], out: Pair) -> dict[str, Any]:
    cut = request["cut"]
    wanted = Cut(
        indices=range(*cut["indices"]),
        window=(cut["window"][0], cut["window"][1], cut["window"][2], cut["window"][3]),
        flip=cut["flip"],
    )
    try:
        shown(Root.of(request["root"]), request["row"], wanted, payload.result(), out)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent must hear of it
        return {"error": type(error).__name__, "message": str(error)}
    return {}


def _listen(work: queue.SimpleQueue[Work], free: queue.SimpleQueue[int]) -> None:
    """Fetch the payloads of requests as they come; the end of them is the end of the process."""
    with ThreadPoolExecutor(QUEUED, thread_name_prefix="fetch") as pool:
        for line in sys.stdin.buffer:
            said = json.loads(line)
            if "free" in said:
                free.put(said["free"])
            else:
                work.put((said, pool.submit(fetch, Root.of(said["root"]), said["row"])))
        os._exit(0)


def _say(answers: int, words: dict[str, Any]) -> None:
    line = json.dumps(words).encode() + b"\n"
    while line:
        line = line[os.write(answers, line) :]


def _end_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone, however that went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
