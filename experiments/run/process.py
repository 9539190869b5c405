"""A training process's use of its machine: threads and memory."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_HEAP_BYTES = 32 << 20
"""The largest allocation that glibc, left alone, would eventually take from its heap."""


def use_cpus(count: int) -> None:
    """Compute on `count` threads, and keep freed memory for the next step.

    Left alone, glibc returns the activations of a step to the system, which then clears each page
    again for the next one: some 2,000 page faults per step, 4 to 7 of its 70 to 90 ms where a model
    is narrow (hidden 64).  The peak of memory is the same.  Another C library is left as it is.
    """
    torch.set_num_threads(count)
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def held_to(gibibytes: float) -> Iterator[None]:
    """Limit the memory of this process beyond what it has now; 0: no limit.

    A run that needs more then fails alone and by name, instead of driving its whole machine into
    the kernel's out-of-memory killer.  An error leaves the block before it is handled, so that the
    handler has memory again.
    """
    if not gibibytes:
        yield
        return
    with open("/proc/self/status", encoding="ascii") as file:
        [line] = (line for line in file if line.startswith("VmData"))
    had = int(line.split()[1]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (had + int(gibibytes * 2**30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
