"""Gives memory back to the system that a step does not need any more."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
LARGE = 1 << 20
"""Blocks of this size or more are returned to the system when they are freed."""


def return_large_blocks() -> None:
    """Have glibc map blocks of a megabyte or more by themselves, so that they are returned when they are freed.

    By itself it raises that bound to 32 MB as soon as such a block is freed, and keeps what a step's gradients needed: 1.8 GB instead of
    1.2 GB for the bundled policy, at the same speed. Other C libraries do as they do.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
