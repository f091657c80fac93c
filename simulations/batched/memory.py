"""How a process keeps memory that it has freed."""

import ctypes
import sys

TRIM, MAP = -1, -3
"""glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD."""
KEPT, LARGEST = 256 << 20, 32 << 20
"""Bytes that are kept at most; bytes of a piece that may be kept (glibc takes no more)."""


def keep_freed_memory() -> None:
    """Have this process keep what it frees for the next time (glibc only).

    Otherwise glibc may give arrays of half a megabyte back with every step and ask for them again, which costs as much
    as the step: each of their pages is cleared anew.
    """
    if not sys.platform.startswith("linux"):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(MAP, LARGEST)
        set_option(TRIM, KEPT)
