"""What is measured: the works of one model, and the JSON lines in which a process tells what it measured.

A job goes to a peer's process as one JSON argument; it answers with one JSON object a line:
{"about": {...}}, {"load_ms": N}, {"work": NAME, "tokens_per_second": N} for each repetition, or
{"work": NAME, "error": TEXT}.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True)
class Work:
    """`prefill`: one forward of `tokens` rows. `decode`: `tokens` steps of `sequences` sequences of one token each.
    `busy` endless loops of other programs run meanwhile."""

    kind: str
    tokens: int
    sequences: int = 1
    busy: int = 0

    @property
    def name(self) -> str:
        together = f" × {self.sequences}" if self.sequences > 1 else ""
        beside = f", {self.busy} busy" if self.busy else ""
        return f"{self.kind} {self.tokens}{together}{beside}"


@dataclass(frozen=True)
class Plan:
    """The works of one model. A handful of rows is what a speculative step or a short question asks for."""

    prompt: int = 512
    handful: int = 32
    generate: int = 128
    batches: tuple[int, ...] = (4, 16)
    repetitions: int = 3
    busy: int = 0

    def quiet(self) -> "Plan":
        """The works that have the machine to themselves."""
        return replace(self, busy=0)

    def works(self) -> list[Work]:
        works = [Work("prefill", self.prompt), Work("prefill", self.handful), Work("decode", self.generate)]
        works += [Work("decode", self.generate, n) for n in self.batches]
        return works + [replace(work, busy=self.busy) for work in works if self.busy]


@dataclass
class Outcome:
    """What one process told: tokens each second by work, and why there is nothing where there is nothing."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    load_ms: float | None = None
    others: float | None = None  # share of the processors' time that other programs took meanwhile


def add_busy(outcome: Outcome, busy: Outcome, plan: Plan) -> None:
    """What the same process told beside `plan.busy` loops, under the names of those works."""
    names = {replace(work, busy=0).name: work.name for work in plan.works() if work.busy}
    outcome.rates |= {names[name]: rates for name, rates in busy.rates.items()}
    outcome.errors |= {names[name]: error for name, error in busy.errors.items()}


def job_text(model: str, threads: int, plan: Plan) -> str:
    works = [asdict(work) | {"name": work.name} for work in plan.works()]
    return json.dumps({"model": model, "threads": threads, "repetitions": plan.repetitions, "works": works})


def parse_lines(lines: Iterable[str]) -> Outcome:
    """Raises ValueError for a line that is not of the protocol."""
    outcome = Outcome()
    for line in filter(str.strip, lines):
        told = json.loads(line)
        match told:
            case {"about": dict(about)}:
                outcome.about = about
            case {"load_ms": float() | int() as load}:
                outcome.load_ms = load
            case {"work": str(work), "tokens_per_second": float() | int() as rate}:
                outcome.rates.setdefault(work, []).append(rate)
            case {"work": str(work), "error": str(error)}:
                outcome.errors[work] = error
            case _:
                raise ValueError(f"not a line of the protocol: {line.strip()[:200]}")
    return outcome
