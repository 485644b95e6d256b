import itertools
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions as failures

from cluster import hands, pool, resources, worker

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
CONFIG = pool.Pool(num_cpus=1.0)


@dataclass
class Flag:
    requested: bool = False


class NotAgain(ValueError):
    retryable = False
    stage = "decode"


class DiskFull(OSError):
    fatal = True


class Unpicklable(RuntimeError):
    fatal = True

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def units(payloads):
    return (pool.Unit(key=str(i), payload=payload) for i, payload in enumerate(payloads))


def by_key(outcomes):
    outcomes = list(outcomes)
    keyed = {outcome.key: outcome for outcome in outcomes}
    assert len(keyed) == len(outcomes), "a unit came out twice"
    return keyed


def times_called(folder: Path, name: str) -> int:
    """Count a call in a file: the worker process may be gone, the byte stays."""
    with (folder / name).open("a") as file:
        file.write(".")
        return file.tell()


def double(payload):
    return 2 * payload


def work(told):
    """Do what the payload says, and say how often it was tried."""
    folder, name, action, until = told
    count = times_called(folder, name)
    if count <= until:
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "raise":
            raise ValueError(f"{name} failed")
        if action == "refuse":
            raise NotAgain(f"{name} never works")
        if action == "disk":
            raise DiskFull(28, "no space left")
        if action == "odd":
            raise Unpicklable("told", "twice")
        if action == "lambda":
            return lambda: None, (x for x in ())
    return name


class Worker:
    def __init__(self, offset):
        self.offset = offset

    def __call__(self, told):
        return work(told), self.offset, os.getpid()


class Broken:
    def __init__(self):
        raise FileNotFoundError("no weights at /nowhere")


class DiesInBirth:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_each_unit_comes_out_once_with_what_it_cost():
    outcomes = by_key(pool.run_tasks(double, units(range(20)), config=CONFIG, stop=Flag()))
    assert {key: outcome.value for key, outcome in outcomes.items()} == {
        str(i): 2 * i for i in range(20)
    }
    one = outcomes["7"]
    assert (one.failure, one.attempts) == (None, 1)
    assert one.wall_s >= 0
    assert one.max_rss_bytes > 10 << 20
    assert one.worker.endswith(tuple("0123456789"))


def test_cpu_seconds_are_those_of_the_worker():
    def burn(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    outcomes = by_key(pool.run_tasks(burn, units([0.0, 0.5]), config=CONFIG, stop=Flag()))
    assert outcomes["0"].cpu_s < 0.3
    assert 0.45 < outcomes["1"].cpu_s < 1.5


def test_a_killed_worker_is_retried_and_a_poison_unit_is_quarantined(tmp_path):
    told = [(tmp_path, f"u{i}", "none", 0) for i in range(6)]
    told += [(tmp_path, "once", "die", 1), (tmp_path, "poison", "die", 99)]
    outcomes = by_key(pool.run_tasks(work, units(told), config=CONFIG, stop=Flag()))
    assert len(outcomes) == 8
    assert (outcomes["6"].value, outcomes["6"].attempts) == ("once", 2)
    poison = outcomes["7"]
    assert poison.attempts == 3
    assert poison.failure is not None
    assert (poison.failure.stage, poison.failure.error_class) == ("worker", "WorkerCrashedError")
    assert "\n" not in poison.failure.message
    for i in range(6):
        assert (outcomes[str(i)].attempts, (tmp_path / f"u{i}").read_text()) == (1, ".")
    assert (tmp_path / "poison").read_text() == "..."


def test_a_killed_actor_is_replaced_and_only_its_unit_is_charged(tmp_path):
    told = [(tmp_path, f"u{i}", "none", 0) for i in range(6)]
    told.insert(2, (tmp_path, "once", "die", 1))
    told.insert(4, (tmp_path, "poison", "die", 99))
    outcomes = by_key(
        pool.run_actors(Worker, (7,), units(told), num_actors=2, config=CONFIG, stop=Flag())
    )
    assert len(outcomes) == 8
    assert outcomes["2"].attempts == 2
    assert outcomes["2"].value[:2] == ("once", 7)
    failure = outcomes["4"].failure
    assert outcomes["4"].attempts == 3
    assert failure is not None
    assert failure.error_class == "ActorDiedError"
    others = [outcomes[key] for key in outcomes if key not in {"2", "4"}]
    assert [outcome.attempts for outcome in others] == [1] * 6
    for i in range(6):
        assert (tmp_path / f"u{i}").read_text() == "."


def test_an_actor_is_kept_from_unit_to_unit(tmp_path):
    told = [(tmp_path, f"u{i}", "none", 0) for i in range(10)]
    outcomes = by_key(
        pool.run_actors(Worker, (0,), units(told), num_actors=2, config=CONFIG, stop=Flag())
    )
    assert len({outcome.value[2] for outcome in outcomes.values()}) <= 2


def test_an_actor_that_cannot_be_built_is_one_clear_error():
    with pytest.raises(hands.PoolError, match="FileNotFoundError: no weights at /nowhere"):
        list(pool.run_actors(Broken, (), units([1]), num_actors=2, config=CONFIG, stop=Flag()))


def test_an_actor_that_dies_while_it_is_built_is_an_error_not_a_hang():
    with pytest.raises(hands.PoolError, match="died while it was built"):
        list(pool.run_actors(DiesInBirth, (), units([1]), num_actors=1, config=CONFIG, stop=Flag()))


def test_exceptions_are_retried_unless_they_say_otherwise(tmp_path):
    told = [
        (tmp_path, "twice", "raise", 2),
        (tmp_path, "always", "raise", 99),
        (tmp_path, "never", "refuse", 99),
    ]
    outcomes = by_key(pool.run_tasks(work, units(told), config=CONFIG, stop=Flag()))
    assert (outcomes["0"].value, outcomes["0"].attempts) == ("twice", 3)
    always, never = outcomes["1"], outcomes["2"]
    assert always.failure is not None
    assert never.failure is not None
    assert (always.attempts, always.failure.message) == (3, "always failed")
    assert "in work" in always.failure.traceback
    assert (never.attempts, never.failure.stage) == (1, "decode")
    assert never.failure.error_class == "NotAgain"


def test_a_value_that_does_not_travel_is_the_units_failure(tmp_path):
    told = [(tmp_path, "generator", "lambda", 99)]
    for outcomes in (
        pool.run_tasks(work, units(told), config=CONFIG, stop=Flag()),
        pool.run_actors(Worker, (0,), units(told), num_actors=1, config=CONFIG, stop=Flag()),
    ):
        failure = by_key(outcomes)["0"].failure
        assert failure is not None
        assert failure.error_class == "TypeError"
        assert "generator" in failure.message


@pytest.mark.parametrize(("action", "error"), [("disk", DiskFull), ("odd", RuntimeError)])
def test_a_fatal_error_ends_the_run_after_what_is_finished(tmp_path, action, error):
    told = [(tmp_path, "good", "none", 0), (tmp_path, "bad", action, 99)]
    told += [(tmp_path, f"late{i}", "none", 0) for i in range(2000)]
    came = []
    config = pool.Pool(window=2)
    with pytest.raises(error, match=r"no space left|told twice"):
        came.extend(pool.run_tasks(work, units(told), config=config, stop=Flag()))
    assert "good" in {outcome.value for outcome in came}
    assert len(came) < 1500


def test_a_stop_yields_what_is_in_flight_and_starts_nothing_more(tmp_path):
    stop = Flag()
    told = ((tmp_path, f"u{i}", "none", 0) for i in itertools.count())
    came = []
    for outcome in pool.run_tasks(work, units(told), config=pool.Pool(window=3), stop=stop):
        came.append(outcome)
        stop.requested = stop.requested or len(came) == 5
    started = {path.name for path in tmp_path.iterdir()}
    assert {outcome.value for outcome in came} == started
    assert 5 <= len(came) <= 8


def test_units_are_drawn_one_window_ahead_and_no_more():
    drawn = []

    def endless():
        for i in itertools.count():
            drawn.append(i)
            yield pool.Unit(key=str(i), payload=i)

    outcomes = pool.run_tasks(double, endless(), config=pool.Pool(window=4), stop=Flag())
    for _ in range(10):
        next(outcomes)
    assert len(drawn) <= 10 + 4
    outcomes.close()


def test_leaving_early_lets_nothing_run_on(tmp_path):
    def slow(name):
        (tmp_path / f"{name}.begun").touch()
        time.sleep(3.0 if name == 1 else 0.0)
        (tmp_path / f"{name}.ended").touch()

    outcomes = pool.run_tasks(slow, units([0, 1]), config=pool.Pool(window=2), stop=Flag())
    next(outcomes)
    deadline_s = time.monotonic() + 30
    while not (tmp_path / "1.begun").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    outcomes.close()
    time.sleep(4.0)
    assert not (tmp_path / "1.ended").exists()


def test_what_can_never_run_is_refused_at_once():
    with pytest.raises(resources.NotEnough, match=r"64 CPU each do not fit.*next:"):
        list(pool.run_tasks(double, units([1]), config=pool.Pool(num_cpus=64), stop=Flag()))
    with pytest.raises(resources.NotEnough, match="1 GPU"):
        list(
            pool.run_actors(
                Worker,
                (0,),
                units([1]),
                num_actors=1,
                config=pool.Pool(num_gpus=1.0),
                stop=Flag(),
            )
        )


def test_nothing_to_do_ends_at_once():
    assert list(pool.run_tasks(double, iter(()), config=CONFIG, stop=Flag())) == []
    assert (
        list(pool.run_actors(Worker, (0,), iter(()), num_actors=1, config=CONFIG, stop=Flag()))
        == []
    )


def test_the_loss_of_a_machine_is_told_from_the_death_of_a_worker():
    assert hands.node_lost(failures.NodeDiedError("the node 12ab is gone"))
    assert not hands.node_lost(failures.ActorDiedError())
    assert not hands.node_lost(failures.WorkerCrashedError())


@given(st.text(), st.sampled_from([ValueError, OSError, KeyError]))
def test_a_described_exception_is_plain_text(text, kind):
    failure = worker.describe(kind(text))
    assert failure.error_class == kind.__name__
    assert len(failure.message) <= worker.MESSAGE_CHARS
    assert failure.stage == "worker"


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_attempts"):
        pool.Pool(max_attempts=0)
    with pytest.raises(ValueError, match="window"):
        pool.Pool(window=-1)


class Marks:
    """Adds a mark; says where and when it worked, one unit at a time or two."""

    def __init__(self, mark, folder, wait_s=0.0):
        self.mark, self.folder, self.wait_s = mark, folder, wait_s

    def __call__(self, told):
        begun_s = time.time()
        time.sleep(self.wait_s)
        name = told if isinstance(told, str) else told.payload
        with (self.folder / self.mark).open("a") as file:
            file.write(f"{name} {begun_s} {time.time()}\n")
        return name + self.mark

    @staticmethod
    def told(folder, mark):
        rows = [line.split() for line in (folder / mark).read_text().splitlines()]
        return {name: (float(begun), float(ended)) for name, begun, ended in rows}


def station(*arguments, number=1, actor=Marks, **more):
    config = pool.Pool(num_cpus=0.5, **more)
    return pool.Station(actor=actor, arguments=arguments, num_actors=number, config=config)


def test_units_pass_all_stations_and_stations_work_at_the_same_time(tmp_path):
    line = [station("a", tmp_path, 0.3), station("b", tmp_path, 0.3)]
    outcomes = by_key(pool.run_line(line, units([f"u{i}" for i in range(6)]), stop=Flag()))
    assert {o.key: o.value for o in outcomes.values()} == {str(i): f"u{i}ab" for i in range(6)}
    first, second = Marks.told(tmp_path, "a"), Marks.told(tmp_path, "b")
    spans = [(second[f"u{i}a"], first[f"u{i + 1}"]) for i in range(5)]
    assert sum(max(a[0], b[0]) < min(a[1], b[1]) for a, b in spans) >= 3
    assert all(o.wall_s >= 0.6 for o in outcomes.values())


def test_a_fast_station_waits_for_a_slow_one_behind_it(tmp_path):
    line = [station("a", tmp_path), station("b", tmp_path, 0.3)]
    ahead = []
    for outcome in pool.run_line(line, units([f"u{i}" for i in range(8)]), stop=Flag()):
        done = len((tmp_path / "a").read_text().splitlines())
        ahead.append(done - int(outcome.key) - 1)
    assert max(ahead) <= 3


class Fails(Marks):
    def __call__(self, told):
        if "odd" in told:
            work((self.folder, told, "die", 1))
            raise NotAgain("never at this station")
        return super().__call__(told)


def test_what_fails_at_a_station_ends_there_and_the_others_go_on(tmp_path):
    line = [station("a", tmp_path), station("b", tmp_path, actor=Fails)]
    told = ["u0", "odd", "u2", "u3"]
    outcomes = by_key(pool.run_line(line, units(told), stop=Flag()))
    failure = outcomes["1"].failure
    assert failure is not None
    assert (failure.error_class, outcomes["1"].attempts) == ("NotAgain", 2)
    assert [outcomes[key].value for key in "023"] == ["u0ab", "u2ab", "u3ab"]
    assert list(Marks.told(tmp_path, "a")).count("odd") == 1


def test_after_a_stop_what_has_begun_passes_the_stations_behind(tmp_path):
    stop = Flag()
    line = [station("a", tmp_path, 0.1), station("b", tmp_path, 0.1)]
    endless = (pool.Unit(key=str(i), payload=f"u{i}") for i in itertools.count())
    came = []
    for outcome in pool.run_line(line, endless, stop=stop):
        came.append(outcome)
        stop.requested = stop.requested or len(came) == 3
    assert len(came) == len(Marks.told(tmp_path, "a"))
    assert all(outcome.value.endswith("ab") for outcome in came)


def test_stations_that_do_not_fit_together_are_refused_at_once(tmp_path):
    most = int(resources.nodes()[0].num_cpus)
    line = [station("a", tmp_path, number=most), station("b", tmp_path, number=most + 1)]
    with pytest.raises(resources.NotEnough, match=r"do not fit at once on 1 machines; next:"):
        list(pool.run_line(line, units(["u"]), stop=Flag()))


class Meets:
    """Parts of a unit wait for each other in a folder; one may be made to die there."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, told):
        if not isinstance(told, pool.Part):
            return "narrow", os.getpid()
        name, dies = told.payload
        if dies and told.number == 1 and times_called(self.folder, f"{name}.tried") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        here = self.folder / told.meeting
        here.mkdir(exist_ok=True)
        (here / str(told.number)).touch()
        end_s = time.monotonic() + 5
        while len(list(here.iterdir())) < told.count:
            if time.monotonic() > end_s:
                raise Missed("the others did not come")
            time.sleep(0.01)
        return told.number, told.count, os.getpid()


class Missed(RuntimeError):
    missed_others = True


def test_a_wide_unit_has_its_actors_at_the_same_time(tmp_path):
    told = [pool.Unit(key="narrow", payload="n")]
    told += [pool.Unit(key=f"w{i}", payload=(f"w{i}", False), width=2) for i in range(3)]
    told += [pool.Unit(key="wider", payload=("wider", False), width=9)]
    config = pool.Pool(num_cpus=0.5)
    outcomes = by_key(
        pool.run_actors(Meets, (tmp_path,), told, num_actors=2, config=config, stop=Flag())
    )
    assert outcomes["narrow"].value[0] == "narrow"
    for key in ("w0", "w1", "w2", "wider"):
        assert outcomes[key].failure is None
        assert outcomes[key].value[:2] == (0, 2)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_part_that_dies_costs_its_unit_one_attempt_at_another_meeting(tmp_path):
    told = [pool.Unit(key=f"w{i}", payload=(f"w{i}", i == 1), width=2) for i in range(3)]
    config = pool.Pool(num_cpus=0.5, max_attempts=2)
    outcomes = by_key(
        pool.run_actors(Meets, (tmp_path,), told, num_actors=2, config=config, stop=Flag())
    )
    assert {key: (o.failure, o.attempts) for key, o in outcomes.items()} == {
        "w0": (None, 1),
        "w1": (None, 2),
        "w2": (None, 1),
    }
    once = [pool.Unit(key="w", payload=("w", True), width=2)]
    config = pool.Pool(num_cpus=0.5, max_attempts=1)
    (lost,) = pool.run_actors(Meets, (tmp_path,), once, num_actors=2, config=config, stop=Flag())
    assert lost.failure is not None
    assert lost.failure.error_class == "ActorDiedError", "not that of the part that was left"


def test_two_units_on_an_actor_overlap_and_a_poison_unit_takes_nobody_with_it(tmp_path):
    config = pool.Pool(num_cpus=0.5, per_actor=2)
    told = units([f"u{i}" for i in range(4)])
    arguments = ("a", tmp_path, 0.5)
    came = by_key(pool.run_actors(Marks, arguments, told, num_actors=1, config=config, stop=Flag()))
    assert len(came) == 4
    spans = sorted(Marks.told(tmp_path, "a").values())
    assert spans[1][0] < spans[0][1], "two at a time"
    assert spans[2][0] >= min(spans[0][1], spans[1][1]) - 0.05, "and no third"
    told = [(tmp_path, f"v{i}", "none", 0) for i in range(6)]
    told.insert(2, (tmp_path, "poison", "die", 99))
    outcomes = by_key(
        pool.run_actors(Worker, (0,), units(told), num_actors=1, config=config, stop=Flag())
    )
    failure = outcomes["2"].failure
    assert failure is not None
    assert failure.error_class == "ActorDiedError"
    assert outcomes["2"].attempts == 3
    others = [outcomes[key] for key in outcomes if key != "2"]
    assert all((one.failure, one.attempts) == (None, 1) for one in others)


class Naps:
    """Takes one at a time, however many it is given, and says who had it."""

    def __init__(self):
        self._turn = threading.Lock()

    def __call__(self, nap_s):
        with self._turn:
            time.sleep(nap_s)
        return os.getpid()


def test_the_last_units_go_to_those_who_are_idle_and_wait_behind_nobody():
    config = pool.Pool(num_cpus=0.5, per_actor=2)
    told = list(units([6.0, 1.0, 0.1, 0.1]))
    came = by_key(pool.run_actors(Naps, (), told, num_actors=2, config=config, stop=Flag()))
    slow = came["0"].value
    assert [came[key].value == slow for key in "123"] == [False] * 3
