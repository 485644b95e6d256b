from dataclasses import fields, replace
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.clip import LIMITS, Contract, Prep, clip_id, payload_size
from ingest.schema import SCORES, captions_schema, ledger_schema, payload_schema, view_schema

WHERE = {
    "source_sha256": "ab" * 32,
    "stream_index": 0,
    "start_pts": 0,
    "end_pts": 61440,
    "timebase": Fraction(1, 12288),
    "prep_digest": "cd" * 32,
}


def test_clip_id_is_fixed_for_ever():
    # python -c "from ingest.clip import clip_id; print(clip_id(**WHERE))"; it must never change
    assert clip_id(**WHERE) == "587fd8bfb3e7af980b0282a69bf21983cd79ab6e40c93a2cd9831d120b009d9d"


@pytest.mark.parametrize("name", sorted(WHERE))
def test_every_part_of_the_place_changes_the_id(name):
    other = {"timebase": Fraction(1, 90000)}.get(
        name, "ef" * 32 if isinstance(WHERE[name], str) else 7
    )
    assert clip_id(**(WHERE | {name: other})) != clip_id(**WHERE)


def test_limits_change_no_digest_and_all_else_does():
    base = Prep()
    assert set(LIMITS) < {field.name for field in fields(Prep)}
    for field in fields(Prep):
        value = getattr(base, field.name)
        if field.name == "contract":
            other = Contract(frames=16)
        elif isinstance(value, str):
            other = "medium"
        else:
            other = value + 2
        changed = replace(base, **{field.name: other}).digest() != base.digest()
        assert changed == (field.name not in LIMITS), field.name


@given(width=st.integers(2, 9000), height=st.integers(2, 9000), side=st.integers(8, 400))
def test_payload_size_is_even_small_and_never_enlarged(width, height, side):
    side *= 2
    out_width, out_height = payload_size(width, height, side)
    assert out_width % 2 == out_height % 2 == 0
    assert 2 <= out_width <= max(2, width)
    assert 2 <= out_height <= max(2, height)
    assert min(out_width, out_height) <= side
    if min(width, height) >= side and max(width, height) < 20 * min(width, height):
        assert abs(out_width / out_height - width / height) <= 0.3 * width / height


@pytest.mark.parametrize(
    "wrong", [{"crf": 99}, {"payload_short_side_px": 255}, {"gop": 0}, {"cut_trim_frames": -1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Prep(**wrong)
    with pytest.raises(ValueError, match="at least 1"):
        Contract(frames=0)


COLUMNS = {
    view_schema: "clip_id shard offset length crc32 frame_count width height caption",
    captions_schema: "clip_id producer payload_sha256 caption rank",
    ledger_schema: "unit_id kind id fate rule score threshold stage error_class message attempts "
    "duplicate_of source_uri source_sha256 source_bytes stream_index timebase_num timebase_den "
    "start_pts end_pts start_s end_s shot_index fps_num fps_den frame_count width height motion "
    "duplicate_frame_share luma_mean luma_range sharpness frames_decoded decode_errors "
    "num_candidates num_kept payload_kind payload_sha256 shard offset length crc32 prep_digest "
    "keep_digest",
}


def test_schemas_are_what_is_stored():
    """Changing a name above changes what is on people's disks."""
    for schema, names in COLUMNS.items():
        assert " ".join(schema().names) == names
    assert payload_schema().names[-1] == "payload"
    assert payload_schema().field("payload").type == pa.large_binary()
    for name in SCORES:
        metadata = ledger_schema().field(name).metadata
        assert {b"kinoray.unit", b"kinoray.range", b"kinoray.direction"} <= metadata.keys()
