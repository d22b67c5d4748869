"""The process of one peer: reads a job, loads the model once, measures each work, tells each repetition, ends.

A peer is an object with `about()`, `prefill(n_tokens)` and `decode(n_sequences, n_tokens)`; the last two give seconds.
Standard output is the protocol's alone (see works.py): what a library prints goes to standard error.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO


class Peer(Protocol):
    def about(self) -> dict:
        """Versions and settings that a record should have."""

    def prefill(self, n_tokens: int) -> float:
        """One forward of fresh random tokens into an empty cache; logits of the last."""

    def decode(self, n_sequences: int, n_tokens: int) -> float:
        """`n_tokens` steps of `n_sequences` that have one token each; logits of every row."""


def fresh_ids(random_source: random.Random, n_tokens: int, vocab_size: int) -> list[int]:
    """Ids that are no control token, in any of the vocabularies here."""
    return [random_source.randrange(vocab_size // 2, vocab_size) for _ in range(n_tokens)]


def protocol_output() -> TextIO:
    """What was standard output; from now on file descriptor 1 is standard error."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def seconds_of(peer: Peer, work: dict) -> float:
    if work["kind"] == "prefill":
        return peer.prefill(work["tokens"])
    return peer.decode(work["sequences"], work["tokens"])


def measure(peer: Peer, work: dict, repetitions: int, tell: Callable[[dict], None]) -> None:
    """A work that raises is told as an error, and the next one goes on."""
    # Fills caches, makes buffers, compiles for a shape; is not counted. A decode is warm after some steps.
    warm = work | {"tokens": min(work["tokens"], 8)} if work["kind"] == "decode" else work
    try:
        seconds_of(peer, warm)
        for _ in range(repetitions):
            rate = work["tokens"] * work["sequences"] / seconds_of(peer, work)
            tell({"work": work["name"], "tokens_per_second": rate})
    except Exception as error:
        tell({"work": work["name"], "error": text_of(error)})


def text_of(error: Exception) -> str:
    """On one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def serve(load: Callable[[str, int], Peer]) -> None:
    """`load` takes the model's path and a number of threads."""
    job = json.loads(sys.argv[1])
    output = protocol_output()

    def tell(told: dict) -> None:
        print(json.dumps(told), file=output, flush=True)

    start = time.perf_counter()
    try:
        peer = load(job["model"], job["threads"])
    except Exception as error:
        for work in job["works"]:
            tell({"work": work["name"], "error": f"cannot load the model: {text_of(error)}"})
        return
    tell({"load_ms": (time.perf_counter() - start) * 1e3})
    tell({"about": peer.about()})
    for work in job["works"]:
        measure(peer, work, job["repetitions"], tell)
