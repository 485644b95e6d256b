import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.events import Board, Poster
from cluster.group import GroupFailed, fit, placed
from cluster.resources import NotEnough

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@dataclass
class Flag:
    requested: bool = False


def work(told):
    """Step until told to stop, which is an error here; the first life of rank 1 ends with a kill."""
    place, post = placed(), Poster(told["board"])
    for step in range(told["steps"]):
        total = torch.ones(1) * (place.rank + 1)
        dist.all_reduce(total)
        event = {"event": "step", "step": step, "total": float(total), "pid": os.getpid()}
        wish = torch.tensor([float(place.rank == 0 and post(event))])
        dist.all_reduce(wish)
        if wish.item():
            raise ValueError("asked to stop")
        died = Path(told["folder"]) / "died"
        if step == 2 and place.rank == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_restarts_the_group_and_an_error_comes_back_in_its_own_words(
    tmp_path, capfd
):
    taken, stop = [], Flag()

    def take(event):
        taken.append(event)
        stop.requested = len(taken) >= 40

    board = Board(stop=lambda: stop.requested)
    told = {"board": board.handle, "folder": str(tmp_path), "steps": 100_000}
    with (
        pytest.raises(GroupFailed, match=r"^ValueError: asked to stop$"),
        board.draining(take),
    ):
        fit(work, told, name="group", folder=tmp_path / "ray", num_workers=2, max_failures=1)
    steps = [event["step"] for event in taken]
    assert {event["total"] for event in taken} == {3.0}
    assert steps[:4] == [0, 1, 2, 0], "the group was not restarted from its function's start"
    assert steps[3:] == list(range(len(steps) - 3))
    assert len(steps) < 10_000
    assert (tmp_path / "died").exists()
    assert capfd.readouterr() == ("", "")


def die(told):
    """Die at once, each time or the first time only."""
    died = Path(told["folder"]) / "died"
    if placed().rank == 1 and (told["always"] or not died.exists()):
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.faults
def test_a_worker_that_dies_as_it_starts_is_started_again_and_said_in_the_end(tmp_path):
    # Ray starts a group anew after its first look at it only; before, the death is an error of its controller
    told = {"folder": str(tmp_path), "always": False}
    fit(die, told, name="once", folder=tmp_path / "ray", num_workers=2, max_failures=1)
    assert (tmp_path / "died").exists()
    told["always"] = True
    with pytest.raises(GroupFailed, match=r"^a worker has died: .*; next: look at that machine"):
        fit(die, told, name="always", folder=tmp_path / "ray", num_workers=2, max_failures=0)


def test_a_group_that_does_not_fit_is_refused_before_it_waits(tmp_path):
    with pytest.raises(NotEnough, match=r"99 workers of 1 CPU each.*next:"):
        fit(work, {}, name="big", folder=tmp_path, num_workers=99, max_failures=0)
