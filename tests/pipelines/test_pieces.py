"""Pieces of tensors: cut, written and read again over any numbers of workers; whatever is damaged is named. One process."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.group import Place
from ingest.files import StorageError
from pipelines import pieces, pieces_read
from pipelines.pieces import Piece, Pieces
from pipelines.pieces_read import Kept

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)
TOLD = {"role": "base", "spec": {"a": [1]}, "parents": {}, "meta": {"step": 3, "rate": 0.1}}
SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1000, shape, generator=generator).to(dtype)


def in_rows(groups: pieces.Groups, rank: int, world: int) -> Pieces:
    """What FSDP2 makes of it: as many rows to each as divide up, rounded up, the last with fewer or none."""
    made: Pieces = {}
    for group, state in groups.items():
        made[group] = {}
        for name, tensor in state.items():
            rows = tensor if tensor.ndim else tensor.reshape(1)
            most = -(-len(rows) // world)
            own = rows[rank * most : (rank + 1) * most].clone()
            first = rank * most if len(own) else 0
            made[group][name] = Piece(rows=own, first=first, shape=tuple(tensor.shape))
    return made


def written(folder: Path, by_rank: list[Pieces]) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    for rank, own in enumerate(by_rank):
        pieces.write(folder, own, rank)
    notes = [json.loads((folder / pieces.note_name(r)).read_text()) for r in range(len(by_rank))]
    pieces.finish(folder, by_rank[0], TOLD, notes)
    return pieces.read_index(folder)


def whole(tensor: torch.Tensor, found: torch.Tensor) -> bool:
    return tensor.dtype == found.dtype and torch.equal(tensor, found)


@st.composite
def states(draw: st.DrawFn) -> dict[str, dict[str, torch.Tensor]]:
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    return {
        f"group{g}": {
            f"{g}.t{n}": filled(draw(SHAPES), draw(st.sampled_from(DTYPES)), 31 * g + n)
            for n in range(count)
        }
        for g, count in enumerate(counts)
    }


@SLOW
@given(groups=states(), world=st.integers(1, 5), shards=st.booleans(), readers=st.integers(1, 5))
def test_what_any_workers_write_any_workers_read(tmp_path, groups, world, shards, readers):
    if shards:
        by_rank = [in_rows(groups, rank, world) for rank in range(world)]
    else:
        by_rank = [pieces.cut(groups, Place(rank=r, world_size=world)) for r in range(world)]
    index = written(tmp_path / "c", by_rank)
    told = {**TOLD, "meta": {**TOLD["meta"], "of_workers": [None] * world}}
    assert {key: index[key] for key in told} == told
    for rank in range(readers):
        own = in_rows(groups, rank, readers)
        with Kept(tmp_path / "c", index) as kept:
            for group, state in groups.items():
                assert set(kept.names(group)) == set(state)
                for name, tensor in state.items():
                    assert kept.shape(group, name) == tuple(tensor.shape)
                    assert whole(tensor, kept.like(group, name))
                    assert whole(tensor, kept.like(group, name, tensor))
                    piece = own[group][name]
                    last = piece.first + len(piece.rows)
                    assert whole(piece.rows, kept.rows(group, name, piece.first, last))
    # the index, the files it names, and nothing else
    left = {path.name for path in (tmp_path / "c").iterdir()}
    assert left == {pieces.INDEX, *index["files"]}
    for reader in range(readers):
        place = Place(rank=reader, world_size=readers)
        assert pieces.damaged(tmp_path / "c", index, place) == []


@SLOW
@given(groups=states(), world=st.integers(1, 9))
def test_what_all_workers_have_is_shared_out_by_bytes(groups, world):
    by_rank = [pieces.cut(groups, Place(rank=r, world_size=world)) for r in range(world)]
    sizes = [sum(p.rows.nbytes for s in own.values() for p in s.values()) for own in by_rank]
    tensors = [t for state in groups.values() for t in state.values()]
    total = sum(t.nbytes for t in tensors)
    row = max((t.nbytes // max(1, t.shape[0] if t.ndim else 1) for t in tensors), default=0)
    assert sum(sizes) == total
    assert all(abs(size - total / world) <= row for size in sizes)


def test_order_in_memory_does_not_matter():
    x = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    own = pieces.cut({"params": {"x": x}}, Place(rank=1, world_size=2))["params"]["x"]
    assert own.first == 2
    assert own.rows.is_contiguous()
    assert torch.equal(own.rows, x[2:])
    assert own.rows.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


STATE = {
    "params": {"w": filled((5, 3), torch.float32, 1), "b": filled((1,), torch.float32, 2)},
    "ema": {"num_updates": torch.tensor(3), "w": filled((5, 3), torch.float32, 3)},
}


@pytest.fixture
def two(tmp_path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of two workers."""
    by_rank = [pieces.cut(STATE, Place(rank=r, world_size=2)) for r in range(2)]
    return tmp_path / "c", written(tmp_path / "c", by_rank)


@pytest.mark.parametrize("checkers", [1, 2, 3, 7])
def test_every_damaged_file_is_found_by_whoever_checks_it(two, checkers):
    folder, index = two
    places = [Place(rank=r, world_size=checkers) for r in range(checkers)]

    def found() -> list[str]:
        return [name for place in places for name in pieces.damaged(folder, index, place)]

    assert len(index["files"]) >= 3
    for name in index["files"]:
        path = folder / name
        sound = path.read_bytes()
        for place in (0, 9, len(sound) // 2, len(sound) - 1):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            assert found() == [name]
        for wrong in (sound[:-1], b"", sound + b"\0"):
            path.write_bytes(wrong)
            assert found() == [name]
        path.unlink()
        assert found() == [name]
        path.write_bytes(sound)
    one, other = sorted(index["files"])[:2]
    (folder / one).rename(folder / "kept")
    (folder / other).rename(folder / one)
    (folder / "kept").rename(folder / other)
    assert sorted(found()) == [one, other]


def test_every_flipped_or_missing_byte_of_the_index_is_damage_and_no_other_version(two):
    folder, index = two
    path = folder / pieces.INDEX
    sound = path.read_bytes()
    for place in range(len(sound)):
        for bit in (1, 4):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ bit]) + sound[place + 1 :])
            with pytest.raises(ValueError, match=r"checkpoint\.json is damaged") as error:
                pieces.read_index(folder)
            assert not isinstance(error.value, pieces.OtherVersion)
        path.write_bytes(sound[:place])
        with pytest.raises(ValueError, match=r"checkpoint\.json is damaged"):
            pieces.read_index(folder)
    path.write_bytes(sound)
    assert pieces.read_index(folder) == index


@pytest.mark.parametrize("version", ["kinoray-checkpoint/1", "kinoray-pieces/3"])
def test_an_index_of_another_version_is_refused_and_not_called_damaged(two, version):
    folder, index = two
    told = {**index, "format": version, "digest": "of other rules"}
    (folder / pieces.INDEX).write_text(json.dumps(told))
    with pytest.raises(pieces.OtherVersion, match=r"written by another version .* next: "):
        pieces.read_index(folder)


def test_rows_that_nobody_or_two_wrote_make_no_checkpoint(tmp_path):
    by_rank = [in_rows(STATE, rank, 3) for rank in range(3)]
    for rank, own in enumerate(by_rank):
        pieces.write(tmp_path, own, rank)
    notes = [json.loads((tmp_path / pieces.note_name(r)).read_text()) for r in range(3)]
    for some in ([0, 1], [0, 2], [1, 2], [0, 1, 1, 2]):
        with pytest.raises(ValueError, match="were not written"):
            pieces.finish(tmp_path, by_rank[0], TOLD, [notes[r] for r in some])
        assert not (tmp_path / pieces.INDEX).exists()


def test_a_tensor_of_another_shape_is_refused(two):
    with Kept(*two) as kept, pytest.raises(ValueError, match=r"params w is \(5, 3\)"):
        kept.like("params", "w", torch.zeros(3, 5))


def test_a_reader_opens_only_files_with_rows_of_its_own(two, monkeypatch):
    opened: list[str] = []

    def counting(path: Path, framework: str) -> Any:
        opened.append(path.name)
        return real(path, framework=framework)

    real = pieces_read.safe_open
    monkeypatch.setattr(pieces_read, "safe_open", counting)
    folder, index = two
    told = index["tensors"]["params"]["w"]["pieces"]
    assert [rank for rank, _, _ in told] == [0, 1] or len(told) == 1
    with Kept(folder, index) as kept:
        for rank, first, rows in told:
            opened.clear()
            kept.rows("params", "w", first, first + rows)
            assert set(opened) <= {pieces.file_name("params", rank)}
    assert all(a[1] + a[2] == b[1] for a, b in pairwise(told))


def test_a_folder_that_cannot_be_written_to_is_an_error_of_storage(tmp_path):
    (tmp_path / "c").write_bytes(b"a file")
    own = pieces.cut(STATE, Place(rank=0, world_size=1))
    with pytest.raises(StorageError, match=r"exists|Not a directory"):
        pieces.write(tmp_path / "c", own, 0)
    (tmp_path / "d" / pieces.file_name("params", 0)).mkdir(parents=True)
    with pytest.raises(StorageError, match=r"directory.*params-00000"):
        pieces.write(tmp_path / "d", own, 0)
