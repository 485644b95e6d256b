"""What a process does with memory that tensors on the CPU no longer use."""

import ctypes
import functools

# glibc's mallopt(3); its values are C ints
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MOST_BYTES = 2**31 - 1
PAD_BYTES = 64 << 20


@functools.cache
def keep_freed() -> bool:
    """Have this process keep freed memory for its next tensors; returns whether its C library can.

    A step takes and frees the same tensors as the one before. Given back to the system, as glibc does with large ones, each
    of their pages would be cleared and mapped again at every step: two workers side by side, which do it at the same moment,
    lose a tenth of their speed. The process stays as large as it was at its largest. Tensors above 2 GiB are given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # only glibc has it
        return False
    values = {TRIM_THRESHOLD: MOST_BYTES, TOP_PAD: PAD_BYTES, MMAP_THRESHOLD: MOST_BYTES}
    taken = [mallopt(parameter, value) for parameter, value in values.items()]
    return all(taken)
