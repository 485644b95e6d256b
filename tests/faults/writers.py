"""Writers of one dataset that kill themselves with SIGKILL at named points, and what must hold afterwards.

The points are around and inside each step of the commit protocol; "inside" means at a random moment of the step, since the
table library cannot be stopped at a line of ours. Nothing in the product knows of them: they are put around its functions here.
"""

import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256

import pyarrow as pa

from ingest.clip import Contract, Prep
from ingest.ledger import to_table
from ingest.objects import Root
from ingest.schema import captions_schema
from ingest.shards import ShardWriter, read_payload, write_shard
from ingest.store import Dataset
from ingest.tables import NotOurs, Table

UNITS_A_COMMIT = 2
NOT_OURS = 17
POINTS = {
    "shard": (ShardWriter, "close"),
    "upload": (Root, "upload"),
    "captions": (Table, "append_missing"),
    "filter": (Table, "fresh"),
    "append": (Table, "_append"),
    "compact": (Table, "compact"),
    "commit": (Dataset, "commit"),
}


def payload_of(unit: str) -> bytes:
    """Return the bytes that a unit's clip has, whoever writes it."""
    return random.Random(unit).randbytes(600)


@dataclass(frozen=True)
class Task:
    """What one writer is to commit, and how likely it dies at each point."""

    root: str
    app: str
    units: list[str]
    seed: int
    chance: float
    environment: dict[str, str]  # that of the campaign: the processes are forked from an older one


def write(task: Task, told) -> None:
    """Commit all units, dying on the way; told(name of the point) is heard before."""
    os.environ.update(task.environment)
    _arm(task, told)
    app = task.app
    dataset = Dataset.create(task.root, Contract(), Prep())
    done = dataset.committed_units()
    todo = [unit for unit in task.units if unit not in done]
    for first in range(0, len(todo), UNITS_A_COMMIT):
        made = [_made(dataset.root, unit) for unit in todo[first : first + UNITS_A_COMMIT]]
        rows = pa.concat_tables([rows for rows, _ in made])
        captions = pa.concat_tables([captions for _, captions in made])
        try:
            dataset.commit(rows, captions, app_id=app, batch=dataset.next_batch(app))
        except NotOurs:
            os._exit(NOT_OURS)
    os._exit(0)


def _made(root: Root, unit: str) -> tuple[pa.Table, pa.Table]:
    payload = payload_of(unit)
    digest, clip = sha256(payload), sha256(unit.encode())
    stored = {"clip_id": clip.digest(), "payload_sha256": digest.digest(), "payload": payload}
    place = write_shard([stored | {"payload_crc32": zlib.crc32(payload)}], root)[0]
    same = {"unit_id": unit, "fate": "kept", "attempts": 1}
    source = same | {"kind": "source", "id": f"s{unit}", "num_candidates": 1, "num_kept": 1}
    kept = same | {
        "kind": "clip",
        "id": clip.hexdigest(),
        "payload_sha256": digest.hexdigest(),
        "shard": place.shard,
        "offset": place.offset,
        "length": place.length,
        "crc32": place.crc32,
    }
    said = {
        "clip_id": clip.hexdigest(),
        "producer": "faults",
        "payload_sha256": digest.hexdigest(),
        "caption": unit,
        "rank": 0,
    }
    return to_table([source, kept]), pa.Table.from_pylist([said], schema=captions_schema())


def _die(told, name: str) -> None:
    told(name)
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(task: Task, told) -> None:
    draw, chance = random.Random(task.seed), task.chance

    def around(name: str, real):
        def faulty(*args, **kwargs):
            fate = draw.random()
            if fate < chance:
                _die(told, f"before {name}")
            timer = None
            if fate > 1 - chance:
                timer = threading.Timer(draw.uniform(0, 0.03), _die, (told, f"inside {name}"))
                timer.daemon = True
                timer.start()
            value = real(*args, **kwargs)
            if timer is not None:
                timer.cancel()
            if chance < fate < 2 * chance:
                _die(told, f"after {name}")
            return value

        return faulty

    for name, (owner, attribute) in POINTS.items():
        setattr(owner, attribute, around(name, getattr(owner, attribute)))


@dataclass
class Campaign:
    """Runs writers in slots, starts each again when it died, until all is committed."""

    root: str
    recipes: list[tuple[str, list[str]]]  # one a slot: app id and its units; equal ids are rivals
    chance: float = 0.02
    kills: Counter = field(default_factory=Counter)
    lost: int = 0  # how often a writer found another of its recipe and stopped

    def run(self, limit_s: float) -> None:
        """Keep every slot busy until its writer ends by itself; a TimeoutError after `limit_s`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.writers"])
        heard, say = context.Pipe(duplex=False)
        running, seed, end_s = {}, 0, time.monotonic() + limit_s
        todo = set(range(len(self.recipes)))
        while todo or running:
            if time.monotonic() > end_s:
                for process in running.values():
                    process.kill()
                raise TimeoutError(f"{self.kills.total()} kills, slots left: {sorted(todo)}")
            for slot in todo:
                seed += 1
                task = Task(self.root, *self.recipes[slot], seed, self.chance, dict(os.environ))
                running[slot] = context.Process(target=write, args=(task, say.send))
                running[slot].start()
            multiprocessing.connection.wait([p.sentinel for p in running.values()], timeout=1)
            while heard.poll():
                self.kills[heard.recv()] += 1
            ended = [slot for slot, process in running.items() if process.exitcode is not None]
            todo = {slot for slot in ended if self._again(running.pop(slot))}

    def _again(self, process) -> bool:
        """Whether the writer that ended did not end well, and its slot must start another."""
        code = process.exitcode
        process.close()
        self.lost += code == NOT_OURS
        assert code in (0, NOT_OURS, -signal.SIGKILL), code
        return code != 0

    def check(self) -> None:
        """Assert that every unit is there once, and every clip's bytes are the right ones."""
        wanted = Counter({unit for _app, units in self.recipes for unit in units})
        dataset = Dataset.open(self.root)
        rows = dataset.ledger().to_pylist()
        for kind in ("source", "clip"):
            assert Counter(row["unit_id"] for row in rows if row["kind"] == kind) == wanted
        said = dataset.captions().to_pylist()
        assert Counter(row["caption"] for row in said) == wanted
        for row in rows:
            if row["kind"] == "clip":
                place = row["shard"], row["offset"], row["length"], row["crc32"]
                assert bytes(read_payload(dataset.root, *place)) == payload_of(row["unit_id"])
        assert dataset.balance(set(wanted)).ok
        clips = dataset.kept_clips()
        assert sorted(clips.column("caption").to_pylist()) == sorted(wanted)


def recipes(slots: int, units: int, *, rivals: int) -> list[tuple[str, list[str]]]:
    """Return the work of `slots` writers: the first `rivals` share one recipe and its units, others have own ones.

    A quarter of everyone's units is everyone's, as when recipes overlap.
    """
    shared = [f"shared-{n}" for n in range(units // 4)]
    found = []
    for slot in range(slots):
        app = "one" if slot < rivals else f"app{slot}"
        found.append((app, [*(f"{app}-{n}" for n in range(units)), *shared]))
    return found
