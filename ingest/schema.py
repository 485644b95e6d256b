"""The columns of everything stored: payload shards, ledger, annotations, log, views.

Units, ranges and directions travel as field metadata. To evolve: add nullable columns, never change
what one means; a golden file in the tests makes every change visible.
"""

from typing import Any

import pyarrow as pa


def _field(
    name: str, kind: pa.DataType, *, required: bool = False, **facts: str
) -> "pa.Field[Any]":
    metadata = {f"kinoray.{key}": value for key, value in facts.items()}
    return pa.field(name, kind, nullable=not required, metadata=metadata or None)


SCORE_FIELDS = (
    _field(
        "motion",
        pa.float64(),
        unit="frame diagonals per second",
        range="[0, inf)",
        direction="middle",
    ),
    _field("duplicate_frame_share", pa.float64(), unit="share", range="[0, 1]", direction="lower"),
    _field("luma_mean", pa.float64(), unit="grey level", range="[0, 255]", direction="middle"),
    _field("luma_range", pa.float64(), unit="grey level", range="[0, 255]", direction="higher"),
    _field(
        "sharpness", pa.float64(), unit="grey level squared", range="[0, inf)", direction="higher"
    ),
    _field("flicker", pa.float64(), unit="grey level", range="[0, 255]", direction="lower"),
)
SCORES = tuple(score.name for score in SCORE_FIELDS)
# What the metadata of these fields says, each row of annotations/scores says of its own score.
SCORE_FACTS = ("unit", "range", "direction")


def _place_fields() -> list["pa.Field[Any]"]:
    return [
        _field("stream_index", pa.int32()),
        _field("timebase_num", pa.int32(), unit="seconds per tick = num/den"),
        _field("timebase_den", pa.int32()),
        _field("start_pts", pa.int64(), unit="source tick"),
        _field("end_pts", pa.int64(), unit="source tick, exclusive"),
    ]


def _shape_fields() -> list["pa.Field[Any]"]:
    return [
        _field("fps_num", pa.int32()),
        _field("fps_den", pa.int32()),
        _field("frame_count", pa.int32(), unit="frame"),
        _field("width", pa.int32(), unit="px"),
        _field("height", pa.int32(), unit="px"),
    ]


def _found_fields() -> list["pa.Field[Any]"]:
    return [
        _field("frames_decoded", pa.int64(), unit="source frame"),
        _field("decode_errors", pa.int64()),
        _field("num_candidates", pa.int32()),
        _field("num_kept", pa.int32()),
        _field("unit_index", pa.int32(), range="which part of a long source; null = all of it"),
        _field("num_units", pa.int32()),
        _field("crop_left", pa.int32(), unit="px of the upright source; null = not cropped"),
        _field("crop_top", pa.int32(), unit="px"),
        _field("crop_width", pa.int32(), unit="px"),
        _field("crop_height", pa.int32(), unit="px"),
        _field("phash", pa.utf8(), unit="three 64-bit hashes, 48 hexadecimal digits"),
    ]


PAYLOAD_KINDS = ("h264_mp4", "png", "raw_u8_thwc", "latent_f16_tchw", "tokens_i32")


def payload_schema() -> pa.Schema:
    """Return the columns of a payload shard; `payload` is last and is all of its weight."""
    digest = pa.binary(32)
    color = pa.struct([(name, pa.utf8()) for name in ("range", "primaries", "transfer", "matrix")])
    return pa.schema(
        [
            _field("clip_id", digest, required=True),
            _field("source_uri", pa.utf8()),
            _field("source_sha256", digest),
            *_place_fields(),
            *_shape_fields(),
            _field("color", color),
            _field("payload_kind", pa.dictionary(pa.int8(), pa.utf8())),
            _field("payload_params", pa.utf8(), unit="JSON"),
            _field("payload_sha256", digest, required=True),
            _field("payload_crc32", pa.uint32(), required=True),
            _field("prep_spec_digest", digest),
            _field("payload", pa.large_binary(), required=True),
        ]
    )


def ledger_schema() -> pa.Schema:
    """Return the columns of the ledger: one row per source and per candidate clip, with its fate.

    Hashes are hex text and crc32 is int64, because Delta has neither fixed binaries nor unsigned.
    """
    text = pa.utf8()
    return pa.schema(
        [
            _field("unit_id", text, required=True),
            _field("kind", text, required=True, range="source | clip"),
            _field("id", text, required=True),
            _field("fate", text, required=True, range="kept | rejected | failed | duplicate"),
            _field("rule", text),
            _field("score", pa.float64()),
            _field("threshold", pa.float64()),
            _field("stage", text),
            _field("error_class", text),
            _field("message", text),
            _field("attempts", pa.int32(), required=True),
            _field("duplicate_of", text),
            _field("source_uri", text),
            _field("source_sha256", text),
            _field("source_bytes", pa.int64(), unit="byte"),
            *_place_fields(),
            _field("start_s", pa.float64(), unit="second from the first frame"),
            _field("end_s", pa.float64(), unit="second from the first frame, exclusive"),
            _field("shot_index", pa.int32()),
            *_shape_fields(),
            *SCORE_FIELDS,
            *_found_fields(),
            _field("payload_kind", text),
            _field("payload_sha256", text),
            *_location(),
            _field("prep_digest", text),
            _field("keep_digest", text),
        ]
    )


def captions_schema() -> pa.Schema:
    """Return the columns of annotations/captions; a caption is bound to the payload it is of.

    A row whose status is "failed" has an empty caption, which counts as none, and says why. Without
    settings it is tried again by the next run that wants it. `raw` and `asked` let other clean-up
    rules make the caption anew without asking again.
    """
    return pa.schema(
        [
            *_bound(),
            _field("caption", pa.utf8(), required=True),
            _field("rank", pa.int32(), required=True, direction="lower"),
            _settings(),
            _field("status", pa.utf8(), range="ok | failed; null = ok"),
            _field("message", pa.utf8()),
            _field("asked", pa.utf8(), unit="hex digest of all that decided the answer, unclean"),
            _field("raw", pa.utf8(), range="the answer, unclean; null = the caption is it"),
        ]
    )


def labels_schema() -> pa.Schema:
    """Return the columns of annotations/labels: the class of a clip, as in UCF-101."""
    return pa.schema([*_bound(), _field("label", pa.utf8(), required=True), _settings()])


def scores_schema() -> pa.Schema:
    """Return the columns of annotations/scores: what a scorer measured; null where it could not."""
    return pa.schema(
        [
            *_bound(),
            _settings(),
            _field("name", pa.utf8(), required=True, range="a column of clips"),
            *(_field(name, pa.utf8()) for name in SCORE_FACTS),
            _field("value", pa.float64()),
        ]
    )


def embeddings_schema() -> pa.Schema:
    """Return the columns of annotations/embeddings: one vector of length 1 for each clip."""
    return pa.schema(
        [
            *_bound(),
            _settings(),
            _field("dim", pa.int32(), required=True),
            _field("vector", pa.binary(), required=True, unit="dim float16, little-endian"),
        ]
    )


def latents_schema() -> pa.Schema:
    """Return the columns of annotations/latents: where what a model made of a clip is stored."""
    return pa.schema(
        [
            *_bound(),
            _field("payload_kind", pa.utf8(), required=True, range="latent_f16_tchw | tokens_i32"),
            _field("shape", pa.utf8(), required=True, unit="JSON list of sizes"),
            *_location(required=True),
        ]
    )


def rights_schema() -> pa.Schema:
    """Return the columns of annotations/rights: what may be done with a source; the latest holds."""
    text = pa.utf8()
    return pa.schema(
        [
            _field("source_sha256", text, required=True),
            _field("producer", text, required=True),
            _field("at", text, required=True, unit="ISO 8601, UTC"),
            _field("licence", text, required=True, range="such as cc-by-4.0; empty = unknown"),
            _field("consent", text, required=True, range="such as given, refused; empty = unknown"),
            _settings(),
        ]
    )


def log_schema() -> pa.Schema:
    """Return the columns of the log: one row per operation on the dataset as a whole."""
    text = pa.utf8()
    return pa.schema(
        [
            _field("op", text, required=True),
            _field("at", text, required=True, unit="ISO 8601, UTC"),
            _field("operation", text, required=True),
            _field("version", pa.int64(), required=True, unit="version of the ledger after it"),
            _field("detail", text, required=True, unit="JSON"),
        ]
    )


def view_schema() -> pa.Schema:
    """Return the columns of a frozen training selection; its rows are sorted by clip_id."""
    name = pa.dictionary(pa.int32(), pa.utf8())
    return pa.schema(
        [
            _field("clip_id", pa.binary(32), required=True),
            _field("shard", name, required=True),
            *(f for f in _location(required=True) if f.name != "shard"),
            _field("frame_count", pa.int32(), required=True, unit="frame"),
            _field("width", pa.int32(), required=True, unit="px"),
            _field("height", pa.int32(), required=True, unit="px"),
            _field("payload_kind", name, required=True),
            _field("fps_num", pa.int32(), required=True),
            _field("fps_den", pa.int32(), required=True),
            _field("caption", pa.utf8(), required=True),
            _field("label", pa.utf8(), required=True),
        ]
    )


def conformed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with exactly the columns of `schema`: those that an older version lacks are null."""
    columns = [
        rows.column(field.name).cast(field.type)
        if field.name in rows.schema.names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _bound() -> list["pa.Field[Any]"]:
    return [
        _field("clip_id", pa.utf8(), required=True),
        _field("producer", pa.utf8(), required=True),
        _field("payload_sha256", pa.utf8(), required=True),
    ]


def _settings() -> "pa.Field[Any]":
    return _field("settings", pa.utf8(), unit="hex digest of all that decided the content")


def _location(*, required: bool = False) -> list["pa.Field[Any]"]:
    return [
        _field("shard", pa.utf8(), required=required, unit="path below the dataset"),
        _field("offset", pa.int64(), required=required, unit="byte"),
        _field("length", pa.int64(), required=required, unit="byte"),
        _field("crc32", pa.int64(), required=required, range="[0, 2^32)"),
    ]


FAILED = "failed"  # the status of a caption that could not be made

# Which annotation has which columns, and the columns whose values together are a row's key.
BOUND_KEY = "clip_id,producer,payload_sha256"
ANNOTATIONS = {
    "captions": (captions_schema, BOUND_KEY),
    "labels": (labels_schema, BOUND_KEY),
    "scores": (scores_schema, f"{BOUND_KEY},name"),
    "embeddings": (embeddings_schema, BOUND_KEY),
    "latents": (latents_schema, BOUND_KEY),
    "rights": (rights_schema, "source_sha256,producer,at"),
}
