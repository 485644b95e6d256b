"""Pieces of one video on their way between threads, processes and Ray actors: the same bits, the planned bytes, no hang."""

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import halo, shared, windows
from models.halo import HaloPlan
from models.samplers import Sampling
from pipelines import exchange, gang
from pipelines.exchange import Carrier
from pipelines.gang import Letterbox, Meeting, PartnerLost, Seat
from tests.models.test_shared import PX, SCALE, TEXT, Window, low, network, whole

PLAN = windows.even(20, 6, 2)
SHAPE = (1, 3, SCALE * PX, SCALE * PX)
# Three steps, guided: three turns of twice the overlaps.
TOLD = {
    "settings": Sampling(steps=3, sampler="ddpm", guidance_scale=2.0),
    "micro_batch": 2,
    "precondition": False,
}
PAYLOADS = 6
LONG_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Bits depend on the number of threads; children and actors have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(seat: Seat, carry: shared.Carry, model=None, frames: int = 20) -> torch.Tensor:
    return shared.sample_ssr_part(
        model or Window(), low(frames), TEXT(["a word"]), TEXT([""]), seeds=[3], scale=SCALE,
        part=seat.part, halo=seat.halo, exchange=carry, **TOLD,
    )  # fmt: skip


def seats(split: HaloPlan, name: str = "video", attempt: int = 1) -> list[Seat]:
    return [Seat(gang=name, attempt=attempt, part=p, halo=split) for p in range(split.num_parts)]


def all_at_once(split: HaloPlan, play) -> list:
    """Call play(seat) for every part, a thread each."""
    with ThreadPoolExecutor(split.num_parts) as pool:
        return list(pool.map(play, seats(split)))


def joined_frames(made) -> torch.Tensor:
    # copied, because what Ray hands out is read-only
    return torch.cat([torch.from_numpy(np.array(frames)) for frames, _ in made], dim=2)


def check(split: HaloPlan, made, model=None) -> None:
    """The frames are those of one process, the bytes those of the plan."""
    assert torch.equal(joined_frames(made), whole(split, model or Window(), low(20), **TOLD))
    assert sum(sent for _, sent in made) == PAYLOADS * split.bytes_per_step(SHAPE)


@pytest.mark.parametrize("parts", range(1, len(PLAN.starts) + 1))
def test_threads_of_one_process(parts):
    split = halo.plan(PLAN, parts, trim=1)
    carriers = exchange.in_process(split, timeout_s=LONG_S)

    def play(seat):
        return make(seat, carriers[seat.part]), carriers[seat.part].bytes_sent

    check(split, all_at_once(split, play))


def over_gloo(split: HaloPlan, play, timeout_s: float = LONG_S) -> list:
    """As all_at_once, with a carrier over a process group of threads, which it cannot tell from processes."""
    kept = gang.keep_store(gang.LOOPBACK, timeout_s=timeout_s)

    def sit(seat):
        store = gang.reach_store(gang.LOOPBACK, kept.port, timeout_s=timeout_s)
        meeting = Meeting(store=store, host=gang.LOOPBACK)
        with exchange.joined(seat, meeting, timeout_s=timeout_s) as carry:
            return play(seat, carry), carry.bytes_sent

    return all_at_once(split, sit)


@pytest.mark.parametrize(
    "split",
    [
        halo.plan(PLAN, 1),
        halo.plan(PLAN, 2, trim=1),
        # windows that reach beyond the next part
        halo.plan(windows.exact(20, 8, 6), 7),
        # no overlaps, and overlaps between the last two parts only
        halo.plan(windows.exact(20, 5, 0), 4),
        halo.plan(windows.clamped(20, 6, 0), 4),
    ],
)
def test_a_process_group_for_plans_of_all_kinds(split):
    check(split, over_gloo(split, make))


@st.composite
def splits(draw):
    frames = draw(st.integers(2, 30))
    window = draw(st.integers(1, frames))
    spread = draw(st.sampled_from([windows.even, windows.clamped]))
    plan = spread(frames, window, draw(st.integers(0, window - 1)))
    trim = draw(st.integers(0, min((o // 2 for o in plan.overlaps), default=2)))
    return halo.plan(plan, draw(st.integers(1, 8)), trim=trim)


@settings(deadline=None, max_examples=60)
@given(splits(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_every_piece_arrives_as_it_was_sent_whatever_its_type(split, dtype):
    told = {
        p: [
            (e, torch.randn(2, 3, e.stop - e.start, 2, 1).to(dtype))
            for receiver in range(split.num_parts)
            if receiver != p
            for e in split.between(p, receiver)
        ]
        for p in range(split.num_parts)
    }
    carriers = exchange.in_process(split, timeout_s=LONG_S)
    for turn in range(2):
        got = all_at_once(split, lambda seat, turn=turn: carriers[seat.part](turn, told[seat.part]))
        for p, pieces in enumerate(got):
            expected = [piece for said in told.values() for piece in said if piece[0].receiver == p]
            assert [e for e, _ in pieces] == [e for e, _ in expected]
            assert all(torch.equal(a, b) for (_, a), (_, b) in zip(pieces, expected, strict=True))
            # what a carrier relies on: overlaps are mutual
            assert {e.sender for e, _ in pieces} == {e.receiver for e, _ in told[p]}
    size = torch.empty(0, dtype=dtype).element_size()
    planned = split.bytes_per_step((2, 3, 2, 1), itemsize=size)
    assert sum(c.bytes_sent for c in carriers) == 2 * planned


def test_what_a_carrier_refuses():
    split = halo.plan(PLAN, 2)
    first, second = exchange.in_process(split, timeout_s=0.2)
    told = [(e, torch.zeros(1, 3, e.stop - e.start, 2, 2)) for e in split.between(0, 1)]
    with pytest.raises(ValueError, match="turn 1 where 0 is due"):
        first(1, told)
    with pytest.raises(PartnerLost, match=r"part 0: nothing came for 0\.2 s"):
        first(0, told)
    other = [(e, torch.zeros(1, 3, e.stop - e.start, 3, 2)) for e in split.between(1, 0)]
    with pytest.raises(PartnerLost, match="part 0 sent 144 bytes where 216 were due"):
        second(0, other)
    for part in (-1, 2):
        with pytest.raises(ValueError, match=rf"part {part} must lie in 0\.\.1"):
            Seat(gang="video", attempt=1, part=part, halo=split)


# Processes


class Deed:
    """What befalls a part at one of its turns."""

    def __init__(self, carry: Carrier, deed: str, turn: int = 2) -> None:
        self.carry, self.deed, self.turn = carry, deed, turn

    def __call__(self, turn, outgoing):
        if turn == self.turn:
            if self.deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.deed == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.deed == "fail":
                raise ArithmeticError("NaN, says this part")
        return self.carry(turn, outgoing)


def play(pipe, seat: Seat, port: int, deed: str, timeout_s: float) -> None:
    """Be one part, in a process of its own, and tell how it ended."""
    torch.set_num_threads(1)
    started_s = time.monotonic()
    try:
        if deed == "trains":
            torch.distributed.init_process_group(
                "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
            )
        store = gang.reach_store(gang.LOOPBACK, port, timeout_s=timeout_s)
        meeting = Meeting(store=store, host=gang.LOOPBACK)
        with exchange.joined(seat, meeting, timeout_s=timeout_s) as carry:
            started_s = time.monotonic()
            frames = make(seat, Deed(carry, deed), network())
        if deed == "trains":
            torch.distributed.all_reduce(torch.zeros(1))
        pipe.send((frames.numpy(), carry.bytes_sent))
    except Exception as error:  # noqa: BLE001  told to the test
        pipe.send((type(error).__name__, str(error), time.monotonic() - started_s))
    # go on living, as an actor does: the end of a process would close sockets that the block had forgotten
    signal.pause()


def processes(
    split: HaloPlan, deeds: dict[int, str], timeout_s: float = LONG_S, attempt: int = 1, kept=None
) -> list:
    """Let a process play each part; a part that says nothing gives None."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    kept = kept or gang.keep_store(gang.LOOPBACK, timeout_s=timeout_s)
    ends = []
    for seat in seats(split, attempt=attempt):
        ours, theirs = context.Pipe()
        told = (theirs, seat, kept.port, deeds.get(seat.part, ""), timeout_s)
        child = context.Process(target=play, args=told, daemon=True)
        child.start()
        theirs.close()
        ends.append((child, ours))
    found = []
    for (_, ours), seat in zip(ends, seats(split), strict=True):
        try:
            patience_s = 0 if deeds.get(seat.part) == "freeze" else 2 * LONG_S
            found.append(ours.recv() if ours.poll(patience_s) else None)
        except EOFError:
            found.append(None)
    for child, _ in ends:
        child.kill()
        child.join()
    return found


@pytest.mark.parametrize("parts", [2, 3])
def test_real_processes_make_the_video_of_one(parts):
    split = halo.plan(PLAN, parts)
    check(split, processes(split, {}), network())


def test_a_process_that_has_a_group_already_may_take_part():
    split = halo.plan(PLAN, 2)
    check(split, processes(split, {0: "trains", 1: "trains"}), network())


def test_a_killed_or_failing_partner_ends_all_others_at_once_and_a_new_attempt_succeeds():
    split = halo.plan(PLAN, 3)
    kept = gang.keep_store(gang.LOOPBACK, timeout_s=LONG_S)
    killed = processes(split, {1: "kill"}, kept=kept)
    failed = processes(split, {0: "fail"}, kept=kept, attempt=2)
    assert killed[1] is None
    assert failed[0][:2] == ("ArithmeticError", "NaN, says this part")
    for name, message, seconds in (killed[0], killed[2], failed[1], failed[2]):
        assert name == "PartnerLost"
        assert "of video/" in message
        assert seconds < LONG_S / 2
    # the same store, with all that the dead have left in it
    check(split, processes(split, {}, kept=kept, attempt=3), network())


def test_no_part_leaves_before_all_have_come_to_the_end():
    came_s, left_s = [0.0] * 3, [0.0] * 3

    def dawdle(seat, carry):
        make(seat, carry)
        time.sleep(0.3 * seat.part)
        came_s[seat.part] = time.monotonic()

    kept = gang.keep_store(gang.LOOPBACK, timeout_s=LONG_S)

    def sit(seat):
        store = gang.reach_store(gang.LOOPBACK, kept.port, timeout_s=LONG_S)
        with exchange.joined(seat, Meeting(store=store, host=gang.LOOPBACK)) as carry:
            dawdle(seat, carry)
        left_s[seat.part] = time.monotonic()

    all_at_once(halo.plan(PLAN, 3), sit)
    assert min(left_s) >= max(came_s)


def test_a_partner_that_stands_still_ends_the_other_within_the_timeout():
    split = halo.plan(PLAN, 2)
    frozen = processes(split, {1: "freeze"}, timeout_s=3.0)
    name, _, seconds = frozen[0]
    assert name == "PartnerLost"
    assert 3.0 <= seconds < 30.0


def test_a_partner_that_never_comes_ends_the_wait():
    seat = seats(halo.plan(PLAN, 2))[0]
    kept = gang.keep_store(gang.LOOPBACK, timeout_s=1.0)
    started_s = time.monotonic()
    meeting = Meeting(store=kept, host=gang.LOOPBACK)
    with pytest.raises(PartnerLost, match="part 0 of video/1"), exchange.joined(seat, meeting, timeout_s=1.0):  # fmt: skip
        pass
    assert time.monotonic() - started_s < 30.0


def test_the_store_listens_where_it_is_told_only():
    kept = gang.keep_store("127.0.0.2", timeout_s=5.0)
    gang.reach_store("127.0.0.2", kept.port, timeout_s=5.0).set("here", "yes")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", kept.port), timeout=5.0).close()


# The letterbox, without Ray


def test_letters_are_fetched_once_and_by_their_attempt():
    async def story():
        box = Letterbox()
        await box.leave("video/1", "a", 1)
        waiting = asyncio.create_task(box.fetch("video/2", "a", LONG_S))
        assert await box.fetch("video/1", "a", LONG_S) == 1
        with pytest.raises(PartnerLost, match=r"a did not come for 0\.05 s"):
            await box.fetch("video/1", "a", 0.05)
        await box.leave("video/2", "a", 2)
        assert await waiting == 2

    asyncio.run(story())


def test_an_attempt_that_was_given_up_ends_its_waits_and_keeps_nothing():
    async def story():
        box = Letterbox()
        await box.leave("video/1", "a", 1)
        waiting = [asyncio.create_task(box.fetch(f"video/{n}", "b", LONG_S)) for n in (1, 2)]
        await asyncio.sleep(0)
        await box.give_up("video/1")
        await box.leave("video/1", "b", "too late")
        assert box._left == {}
        with pytest.raises(PartnerLost, match="given up"):
            await waiting[0]
        await box.leave("video/2", "b", 2)
        assert await waiting[1] == 2

    asyncio.run(story())


# Ray actors


@ray.remote(num_cpus=1, max_restarts=0)
class Player:
    """A sampling actor that takes part in one gang after the other."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def make(self, seat: Seat, box, way: str, timeout_s: float = LONG_S, deed: str = ""):
        if way == "gloo":
            meeting = gang.meet(box, seat, timeout_s=timeout_s)
            inside = exchange.joined(seat, meeting, timeout_s=timeout_s)
        else:
            inside = exchange.stored(seat, box, timeout_s=timeout_s)
        with inside as carry:
            frames = make(seat, Deed(carry, deed))
        return frames.numpy(), carry.bytes_sent


@pytest.fixture(scope="module")
def players(ray_session):  # noqa: ARG001  what starts Ray
    """Three actors for all tests here, as a process that imports torch starts slowly; who kills one hires another."""
    hired = [Player.remote() for _ in range(3)]
    yield hired
    for player in hired:
        ray.kill(player)


@pytest.fixture(scope="module")
def box(ray_session):  # noqa: ARG001  what starts Ray
    """One letterbox for all gangs, as in a run."""
    return gang.open_letterbox()


@pytest.mark.ray
@pytest.mark.parametrize("way", ["gloo", "object store"])
def test_actors_make_one_video_after_the_other_with_changing_partners(players, box, way):
    for number, team in enumerate([(0, 1, 2), (2, 0), (1, 2)]):
        split = halo.plan(PLAN, len(team))
        sitting = zip(team, seats(split, f"{way}-{number}"), strict=True)
        check(split, ray.get([players[i].make.remote(seat, box, way) for i, seat in sitting]))


@pytest.mark.ray
@pytest.mark.parametrize("way", ["gloo", "object store"])
def test_a_killed_actor_ends_the_attempt_and_the_next_one_succeeds(players, box, way):
    split, name = halo.plan(PLAN, 2), f"{way}-killed"
    first, second = seats(split, name)
    waits = players[0].make.remote(first, box, way)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(players[1].make.remote(second, box, way, deed="kill"))
    third, players[1] = players[2], Player.remote()
    if way == "object store":
        # here nobody sees a death but who gets the actor's report: the driver
        ray.get(box.give_up.remote(first.key))
    seen_s = time.monotonic()
    with pytest.raises(PartnerLost, match=f"part 0 of {name}/1"):
        ray.get(waits)
    assert time.monotonic() - seen_s < LONG_S / 2
    again = zip((players[0], third), seats(split, name, attempt=2), strict=True)
    check(split, ray.get([player.make.remote(seat, box, way) for player, seat in again]))


@pytest.mark.ray
@pytest.mark.parametrize("way", ["gloo", "object store"])
def test_an_actor_that_nobody_joins_waits_no_longer_than_it_may(players, box, way):
    seat = seats(halo.plan(PLAN, 2), f"{way}-alone")[0]
    started_s = time.monotonic()
    with pytest.raises(PartnerLost, match="of part 1 for part 0 did not come for 2 s"):
        ray.get(players[0].make.remote(seat, box, way, timeout_s=2.0))
    assert 2.0 <= time.monotonic() - started_s < LONG_S / 2


@pytest.mark.ray
def test_a_failing_part_gives_up_for_all_and_pixels_never_pass_the_letterbox(players, box):
    split = halo.plan(PLAN, 2)
    first, second = seats(split, "failing")
    waits = players[0].make.remote(first, box, "object store")
    # this process sits on the second seat for a turn
    letter = ray.get(box.fetch.remote(first.key, "turn 0 of part 0 for part 1", LONG_S))
    assert [type(one) for one in letter] == [ray.ObjectRef]
    with pytest.raises(ArithmeticError), exchange.stored(second, box, timeout_s=LONG_S):
        raise ArithmeticError("NaN, says this part")
    with pytest.raises(PartnerLost, match="given up"):
        ray.get(waits)
