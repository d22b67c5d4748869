"""Programs that keep processors busy beside a measurement: what a machine that is shared looks like to a program."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOOP = "while True: pass"


@contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen]]:
    """`count` endless loops, ended with the block."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(count)]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()
