"""How much memory this process holds, and how much it may still take."""

from __future__ import annotations

import sys

import psutil


def rss_bytes() -> int:
    """Resident memory now."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """The most resident memory the process ever held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(device: str = "cpu") -> int:
    """Memory that can still be taken: of the GPU, or of the machine within our own limits."""
    from engine.memory import available_memory

    free = available_memory(device)
    return free if device.startswith("cuda") else min(free, _address_room())


def _address_room() -> int:
    """Room under `ulimit -v`."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(0, limit - int(psutil.Process().memory_info().vms))
