"""Keeping the heap of a process whose memory rises and falls in each update.

When a backward has freed what lies on top of its heap, glibc gives that back to the system, and the next forward asks for it again, page by
page: some percent of an update on a CPU, more or less as the blocks happen to lie. For commands that own their process; a library must not decide it.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# beyond this, glibc by itself maps each block anew too: a heap with such holes in it would grow
_LARGEST_BLOCK = 32 << 20
_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep() -> bool:
    """Give no freed memory back until the process ends. False where the allocator is not glibc's, or the environment has settled it."""
    if sys.platform != "linux" or any(name in os.environ for name in _OWN_CHOICE):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1) and libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK))
