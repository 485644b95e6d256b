"""The boxes of an MP4, to be found and changed where they lie."""

import struct

TRACK = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def box(kind, *parts):
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def boxes(raw, start=0, end=None):
    end = len(raw) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", raw[start : start + 8])
        yield kind, start, max(8, size)
        start += max(8, size)


def place_of_box(raw, path):
    start, end = 0, len(raw)
    for wanted in path:
        _, start, size = next(found for found in boxes(raw, start, end) if found[0] == wanted)
        start, end = start + 8, start + size
    return start, end
