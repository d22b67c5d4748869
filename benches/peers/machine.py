"""What this machine is: its processor, its free memory and disk, how busy it is. Linux tells; elsewhere less is known."""

import os
import pathlib
import platform
import resource
import shutil
import time
from dataclasses import dataclass

# The instruction sets that decide which kernels a peer takes, as /proc/cpuinfo spells them.
TOLD_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512vbmi", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve",
)


@dataclass(frozen=True)
class Processor:
    """`flags` holds only what TOLD_FLAGS names."""

    name: str
    flags: tuple[str, ...]
    cores: int


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Name and flags of the first processor of /proc/cpuinfo; Arm kernels give no name."""
    name, flags = "", frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key = key.strip().lower()
        if key == "model name" and not name:
            name = " ".join(value.split())
        elif key in ("flags", "features") and not flags:
            flags = frozenset(value.split())
    return name, flags


def processor() -> Processor:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name, flags = parse_cpuinfo(text)
    return Processor(name or platform.machine(), tuple(f for f in TOLD_FLAGS if f in flags), usable_cores())


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be taken without swapping."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def free_disk(folder: pathlib.Path) -> int:
    """Bytes free where `folder` is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def parse_busy_ticks(stat: str) -> int:
    """Ticks that all processors spent on something, of /proc/stat: not idle and not waiting for a disk."""
    user, nice, system, _idle, _wait, *interrupts = (int(word) for word in stat.split("\n", 1)[0].split()[1:9])
    return user + nice + system + sum(interrupts)


def busy_seconds() -> float | None:
    """Of all processors together, since the machine started; what a host took from them counts too."""
    try:
        text = pathlib.Path("/proc/stat").read_text(encoding="ascii")
    except OSError:
        return None
    return parse_busy_ticks(text) / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """How much of the machine others took since this was made, by the time of ended children of this process."""

    def __init__(self) -> None:
        self.start = (time.monotonic(), busy_seconds(), children_seconds())

    def share(self) -> float | None:
        """Of all processors' time, 0 to 1."""
        start, busy, children = self.start
        now = busy_seconds()
        if busy is None or now is None:
            return None
        others = (now - busy) - (children_seconds() - children)
        return min(1.0, max(0.0, others / ((time.monotonic() - start) * (os.cpu_count() or 1))))


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
