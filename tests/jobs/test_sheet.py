"""The contact sheet of a set: who is on it, and that texts from outside stay texts."""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ingest.encode import encode_video
from ingest.objects import Root
from ingest.tables import Table
from jobs import sheet
from pipelines.manifest import FOLDER, KEY, SCHEMA, Asked

EVIL = "<img src=x onerror=alert(1)> & 'more'"


def made(folder, prompts, *, failed=0):
    """Write a set of one sample for each prompt, the last ones failed."""
    video = encode_video(np.zeros((4, 16, 16, 3), np.uint8), 8, lossless=False)
    rows = []
    for number, prompt in enumerate(prompts):
        path = f"videos/{number} ?#.mp4"
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(video)
        done = number < len(prompts) - failed
        row = {
            "identity": f"{number:064x}",
            "status": "done" if done else "failed",
            "error": None if done else f"Error: {EVIL}",
            "prompt_id": f"{number:016x}",
            "prompt": prompt,
            "index": 0,
            "seed": "00ff",
            "frames": 4,
            "width": 16,
            "height": 16,
            "fps": 8,
            "wall_s": 1.5,
            "base_digest": "ab" * 32,
            "view_path": path,
        }
        rows.append({**row, KEY: row["identity"]})
    table = Table.create(Root.of(folder), FOLDER, SCHEMA, key=KEY)
    table.commit(pa.Table.from_pylist(rows, schema=SCHEMA), app_id="t", batch=table.next_batch("t"))
    Asked(tuple(row["identity"] for row in rows)).write(folder)
    return folder


def test_the_page_shows_what_is_there_and_says_what_failed(tmp_path):
    page = sheet.write(made(tmp_path / "set", ["a cat", EVIL, "a dog"], failed=1)).read_text()
    assert page.count("data:image/jpeg") == 2 * 3
    assert "2 samples of 2 prompts, 1 failed; 4 frames of 16 x 16 px at 8 fps" in page
    assert "<img src=x" not in page
    assert page.count("onerror=alert(1)") == 2, "as text: a prompt, and a reason"
    assert 'href="videos/0%20%3F%23.mp4"' in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_prompts_stand_in_the_order_in_which_they_were_asked(tmp_path):
    made(tmp_path, prompts := ["first", "second", "third"])
    asked = Asked.read(tmp_path)
    assert asked is not None
    Asked(asked.identities[::-1]).write(tmp_path)
    page = sheet.write(tmp_path).read_text()
    places = [page.index(f"<h3>{prompt}</h3>") for prompt in prompts]
    assert places == sorted(places, reverse=True)


def test_it_is_made_again_when_the_set_has_grown_and_only_then(tmp_path):
    folder = made(tmp_path / "set", ["a cat", "a dog"])
    first = sheet.write(folder)
    before = first.stat().st_mtime_ns
    assert sheet.write(folder).stat().st_mtime_ns == before
    Asked((f"{0:064x}",)).write(folder)
    assert sheet.write(folder).stat().st_mtime_ns != before
    assert "a dog" not in first.read_text()


def test_a_video_that_is_gone_leaves_words(tmp_path):
    folder = made(tmp_path / "set", ["a cat"])
    (folder / "videos" / "0 ?#.mp4").unlink()
    page = sheet.write(folder).read_text()
    assert "data:image/jpeg" not in page
    assert "seed 00ff" in page


@given(st.lists(st.integers(1, 30), min_size=1, max_size=150))
def test_as_many_prompts_as_can_be_are_shown_and_none_twice(samples):
    rows = [{"prompt_id": p, "index": i} for p, n in enumerate(samples) for i in range(n)]
    found = sheet.chosen(rows)
    assert len(found) == min(len(rows), sheet.MOST)
    assert found == sorted(found, key=lambda r: (r["prompt_id"], r["index"]))
    count = Counter(row["prompt_id"] for row in found)
    assert len(count) == min(len(samples), sheet.MOST)
    most = max(count.values())
    for prompt, number in enumerate(samples):
        if len(samples) <= sheet.MOST:
            assert count[prompt] >= min(number, most - 1)
