import json
import os
import signal
import time
from pathlib import Path

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.eventlog import EventLog, read_events
from cluster.events import Board, Poster

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
NAMES = st.text(min_size=1, max_size=8).filter(lambda n: n not in {"time", "verb", "event"})


def never():
    return False


@given(fields=st.dictionaries(NAMES, JSON, max_size=4))
def test_what_is_emitted_is_read_back(tmp_path_factory, fields):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    EventLog(path).emit(verb="curate", event="done", **fields)
    (event,) = read_events(path)
    assert {"verb": "curate", "event": "done", **fields} == {
        key: value for key, value in event.items() if key != "time"
    }
    assert abs(event["time"] - time.time()) < 60


def test_a_log_torn_by_a_kill_goes_on_with_a_whole_line(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit(verb="train", event="step", step=1)
    with path.open("a") as file:
        file.write('{"time": 1, "verb": "tr')
    EventLog(path).emit(verb="train", event="step", step=2)
    assert [event["step"] for event in read_events(path)] == [1, 2]
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 2


def test_subscribers_see_what_comes_after(tmp_path):
    log = EventLog(tmp_path / "deep" / "events.jsonl")
    seen = []
    log.emit(verb="curate", event="before")
    log.subscribe(seen.append)
    log.emit(verb="curate", event="after", path=Path("/a"))
    assert [event["event"] for event in seen] == ["after"]


@ray.remote(num_cpus=0)
def chat(board, count):
    post = Poster(board)
    return [post({"event": "step", "step": i}) for i in range(count)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_all_that_workers_post_arrives_in_order_before_the_block_ends():
    taken = []
    board = Board(stop=never)
    with board.draining(taken.append):
        answers = ray.get(chat.remote(board.handle, 50), timeout=60)
    assert [event["step"] for event in taken] == list(range(50))
    assert answers == [False] * 50


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_wish_to_stop_reaches_the_workers():
    @ray.remote(num_cpus=0)
    def until_told(board):
        post = Poster(board)
        for i in range(600):
            if post({"event": "step", "step": i}):
                return i
            time.sleep(0.05)
        return -1

    seen = []
    board = Board(stop=lambda: len(seen) >= 5)
    with board.draining(seen.append):
        assert ray.get(until_told.remote(board.handle), timeout=60) >= 5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_error_of_the_taker_stops_the_workers_and_is_raised():
    def take(_event):
        raise OSError(28, "no space left")

    def work(board, answers):
        post = Poster(board.handle)
        with board.draining(take):
            for _ in range(30):
                answers.append(post({"event": "step"}))
                time.sleep(0.05)

    answers = []
    with pytest.raises(OSError, match="no space left"):
        work(Board(stop=never), answers)
    assert answers[-1], "the workers were not told to stop"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_board_that_is_gone_costs_the_worker_nothing_but_the_event():
    board = Board(stop=never)
    ray.kill(board.handle)
    post = Poster(board.handle)
    assert post({"event": "step"}) is False
    assert post.untaken() == [{"event": "step"}]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_the_driver_has_not_dealt_with_is_untaken():
    board = Board(stop=never)
    one, other = Poster(board.handle), Poster(board.handle)
    events = [{"event": "step", "step": i} for i in range(5)]
    one(events[0])
    other(events[1])
    first = board.drain()
    assert [event for _, _, event in first] == events[:2]
    one(events[2])  # handed over is not dealt with: a killed driver would have recorded nothing
    assert one.untaken() == [events[0], events[2]]
    # and an answer that did not arrive is given again
    assert [event for _, _, event in board.drain()] == events[:3]
    for posted in first:
        board.taken(posted)
    assert [event for _, _, event in board.drain()] == [events[2]]
    one(events[3])
    assert one.untaken() == [events[2], events[3]]
    other(events[4])
    assert other.untaken() == [events[4]]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_a_taker_fails_on_and_all_behind_it_stays_untaken():
    recorded = []

    def take(event):
        if event["step"] == 1:
            raise OSError(28, "no space left")
        recorded.append(event["step"])

    def work(board):
        with board.draining(take):
            for step in range(4):
                post({"event": "step", "step": step})
                time.sleep(0.3)

    board = Board(stop=never)
    post = Poster(board.handle)
    with pytest.raises(OSError, match="no space left"):
        work(board)
    assert recorded == [0]
    assert [event["step"] for event in post.untaken()] == [1, 2, 3]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_event_whose_post_got_lost_goes_with_the_next():
    board = Board(stop=never)
    post = Poster(board.handle)
    post({"step": 0})
    post._waiting.append((2, {"step": 1}))  # counted, and never received
    post._count = 2
    post({"step": 2})
    assert [event["step"] for _, _, event in board.drain()] == [0, 1, 2]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_board_whose_process_is_killed_loses_and_doubles_nothing():
    """Events come on through three kills, also those that were posted and not drained."""
    taken = []
    board = Board(stop=never)
    post, other = Poster(board.handle), Poster(board.handle)
    with board.draining(taken.append):
        for number in range(60):
            post({"of": 1, "step": number})
            other({"of": 2, "step": number})
            if number in (10, 11, 40):
                os.kill(
                    ray.get(board.handle.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL
                )
        end_s = time.monotonic() + 60  # a post that found no board goes with the next one
        while len(post.untaken()) > 1 or len(other.untaken()) > 1:
            assert time.monotonic() < end_s
            time.sleep(1.0)
            post({"of": 0})
            other({"of": 0})
    for of in (1, 2):
        assert [event["step"] for event in taken if event["of"] == of] == list(range(60))


def test_a_line_torn_by_a_full_disk_costs_no_other(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit(verb="train", event="step", step=1)
    whole = Path.open

    def half(self, *args, **kwargs):
        file = whole(self, *args, **kwargs)
        file.write('{"time": 1, "ver')
        file.close()
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", half)
        with pytest.raises(OSError, match="no space"):
            log.emit(verb="train", event="step", step=2)
    log.emit(verb="train", event="step", step=3)
    assert [event["step"] for event in read_events(path)] == [1, 3]
