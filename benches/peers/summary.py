"""From the outcomes of all rounds to the numbers of a table: medians, extremes, ratios, and why a number is absent."""

from dataclasses import dataclass
from statistics import median

from works import Outcome


@dataclass(frozen=True)
class Number:
    """Tokens each second: of the rounds' medians the median, the least and the most."""

    median: float
    least: float
    most: float
    rounds: tuple[float | None, ...]


def by_round(outcomes: list[Outcome], work: str) -> tuple[float | None, ...]:
    """The median of each round's repetitions; nothing where the round has no number."""
    return tuple(median(outcome.rates[work]) if outcome.rates.get(work) else None for outcome in outcomes)


def number(outcomes: list[Outcome], work: str) -> Number | None:
    rounds = by_round(outcomes, work)
    there = [rate for rate in rounds if rate is not None]
    return Number(median(there), min(there), max(there), rounds) if there else None


def ratio(puna: Number | None, peer: Number | None) -> float | None:
    """The median over rounds of Puna's rate by the peer's of the same round: what drifts, drifts in both."""
    if puna is None or peer is None:
        return None
    pairs = [(a, b) for a, b in zip(puna.rounds, peer.rounds) if a is not None and b is not None]
    return median(a / b for a, b in pairs) if pairs else None


def failures(outcomes: list[Outcome]) -> list[str]:
    """Each reason once, with the works that it stopped."""
    works: dict[str, list[str]] = {}
    for outcome in outcomes:
        for work, why in outcome.errors.items():
            if work not in works.setdefault(why, []):
                works[why].append(work)
    return [f"{', '.join(names)}: {why}" for why, names in works.items()]


def puna_shares(outcomes: list[Outcome]) -> dict[str, float]:
    """What `puna bench` tells of the machine beside its speeds, each the median over rounds."""
    keys = ("bandwidth_gbs", "peak_bf16_tflops", "decode_bandwidth_share", "prefill_peak_share")
    told = [outcome.about for outcome in outcomes if outcome.about]
    return {key: median(about[key] for about in told) for key in keys} if told else {}
