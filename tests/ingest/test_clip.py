import json
from dataclasses import fields, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.clip import LIMITS, Contract, Prep, clip_id, payload_kind, payload_size, played_s

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
    pixels = payload_size(width, height, side, even=False)
    assert pixels == (width, height) or min(pixels) == side
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


def test_digests_of_older_datasets_stay():
    """What datasets on disk were made with: a new field must leave these as they are.

    They change with PREP_VERSION only, here 3: frames reach the encoder without a conversion of colours.
    """
    assert (
        Prep(crf=18).digest() == "1b510d2002d94a15a4191912a88279d9eac6d8e4da638fdc7ecb04c880f4da4d"
    )
    small = Prep(crf=18, contract=Contract(frames=16, fps=8), payload_short_side_px=64)
    assert small.digest() == "1ef1946d3eccc93a35f3671de8f6c3fdb05ec011fb614d7be2e866171979bdb3"
    assert Contract(**json.loads('{"frames": 80, "fps": 16}')) == Contract()
    assert json.dumps(Contract().settings()) == '{"frames": 80, "fps": 16}'


@pytest.mark.parametrize(
    ("fields_of", "words"),
    [
        ({"frames": 0}, "at least 1"),
        ({"fps": 0}, "at least 1"),
        ({"fps": -16}, "at least 1"),
        ({"fps": "natve"}, 'nor "native"'),
        ({"interval": 3}, 'needs fps="native"'),
        ({"frames": 1, "fps": 2, "interval": 2}, 'needs fps="native"'),
        ({"fps": "native", "interval": 0}, "interval=0 must be within"),
        ({"fps": "native", "interval": -1}, "must be within"),
        ({"fps": "native", "interval": 10**9}, "must be within"),
    ],
)
def test_impossible_contracts_are_refused_with_the_reason(fields_of, words):
    with pytest.raises(ValueError, match=words):
        Contract(**fields_of)


contracts = st.one_of(
    st.builds(Contract, frames=st.integers(1, 100), fps=st.integers(1, 100)),
    st.builds(
        Contract, frames=st.integers(1, 100), fps=st.just("native"), interval=st.integers(1, 100)
    ),
)


@given(contracts, st.fractions(1, 120, max_denominator=1001))
def test_a_contract_says_how_its_clips_play(contract, source_fps):
    fps = contract.payload_fps(source_fps)
    assert contract.is_still == (fps == 0) == (payload_kind(contract) == "png")
    if contract.is_still:
        assert contract.seconds(source_fps) == played_s(1, 0, 1) == 0
    else:
        assert fps == (source_fps / contract.interval if contract.native else contract.fps)
        assert contract.seconds(fps) == pytest.approx(
            played_s(contract.frames, fps.numerator, fps.denominator)
        )
    assert contract.span <= contract.frames * contract.step
    assert Contract(**json.loads(json.dumps(contract.settings()))) == contract
    assert contract.describe()


def test_different_contracts_have_different_digests():
    some = (
        Contract(), Contract(frames=16), Contract(fps=15), Contract(fps="native"),
        Contract(fps="native", interval=2), Contract(fps="native", interval=3), Contract(frames=1),
    )  # fmt: skip
    assert len({Prep(contract=contract).digest() for contract in some}) == len(some)


def test_contracts_in_words():
    said = [Contract(), Contract(frames=16, fps="native", interval=3), Contract(frames=1, fps=2)]
    assert [contract.describe() for contract in said] == [
        "80 frames at 16 fps",
        "16 frames, 1 of 3 frames of the source",
        "stills (from videos: 2 fps)",
    ]
