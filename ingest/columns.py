"""Whole columns at once: membership, ids as text, rows in place of others. No Python object a row."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Column = Any  # pa.ChunkedArray, whose stubs want to know of what
HEX_ID = re.compile("[0-9a-f]{64}")


def among(column: Column, values: Any) -> np.ndarray:
    """Return for each value of a column whether it is one of `values`, iterable or a column."""
    given = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else list(values)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    options = pc.SetLookupOptions(value_set=pa.array(given, kind))
    return flags(pc.call_function("is_in", [column.cast(kind)], options))


def index_in(wanted: Column, stored: Column) -> Column:
    """Return where each wanted value first stands in a column, null where it does not."""
    whole = stored.combine_chunks() if isinstance(stored, pa.ChunkedArray) else stored
    return pc.call_function("index_in", [wanted], pc.SetLookupOptions(value_set=whole))


def joined(*columns: Column) -> Column:
    """Return text columns as one, a space between: keys of several columns; null where one is."""
    return pc.call_function("binary_join_element_wise", [*columns, pa.scalar(" ")])


def plain(table: pa.Table) -> pa.Table:
    """Return a table with ordinary text columns: engines may give views of text or dictionaries."""
    text = {pa.string_view(): pa.utf8(), pa.large_utf8(): pa.utf8()}
    fields = [
        field.with_type(
            field.type.value_type
            if pa.types.is_dictionary(field.type)
            else text.get(field.type, field.type)
        )
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def flags(column: Column) -> np.ndarray:
    """Return a column of truth values; null is false."""
    return column.fill_null(fill_value=False).to_numpy().astype(bool)


def raw_ids(names: Iterable[str]) -> list[bytes]:
    """Return the bytes of ids that are 64 hexadecimal digits; other names have none."""
    return [bytes.fromhex(name) for name in names if HEX_ID.fullmatch(name)]


def hex_ids(column: Column) -> "pa.Array[Any]":
    """Return a column of ids as text, whether it holds text or 32 bytes."""
    whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if not pa.types.is_fixed_size_binary(whole.type):
        return whole
    width = whole.type.byte_width
    stored = memoryview(whole.buffers()[1])[width * whole.offset :][: width * len(whole)]
    ends = pa.array(np.arange(len(whole) + 1, dtype=np.int32) * 2 * width).buffers()[1]
    text = pa.py_buffer(stored.hex().encode())
    return pa.Array.from_buffers(pa.utf8(), len(whole), [None, ends, text])


def in_place(table: pa.Table, name: str, at: np.ndarray, values: Column) -> pa.Table:
    """Return the table with `values` in the rows `at` of one column."""
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    coded = pa.types.is_dictionary(field.type)
    old = table.column(name).cast(field.type.value_type) if coded else table.column(name)
    order = np.arange(table.num_rows)
    order[at] = table.num_rows + np.arange(len(at))
    both = pa.chunked_array([*old.chunks, *values.cast(old.type).chunks], old.type)
    taken = both.take(pa.array(order)).combine_chunks()
    new = taken.dictionary_encode().cast(field.type) if coded else taken
    return table.set_column(index, field, new)
