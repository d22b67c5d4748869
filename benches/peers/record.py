"""The record of a run: a dictionary, written as JSON, with the Markdown table beside it. It names no machine and no path."""

import json
import pathlib
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict

import summary
from files import Model
from works import Outcome, Plan

PATH = re.compile(r"(?<![\w.:])~?/(?:[\w.+@-]+/)*([\w.+@-]+)/?")
ADDRESS = re.compile(r"\b\w+://\S+|\bhost='[^']*'")


def scrub(text: str, node: str) -> str:
    """Without addresses, the folders of a path, and the machine's name."""
    text = PATH.sub(lambda match: match.group(1), ADDRESS.sub("(address)", text))
    return re.sub(rf"\b{re.escape(node)}\b", "(machine)", text) if len(node) > 2 else text


def scrubbed(value):
    """The same value with every text in it scrubbed."""
    match value:
        case str():
            return scrub(value, platform.node())
        case dict():
            return {key: scrubbed(inner) for key, inner in value.items()}
        case list() | tuple():
            return [scrubbed(inner) for inner in value]
    return value


def model_record(model: Model, plan: Plan, outcomes: dict[str, list[Outcome]]) -> dict:
    """One model: its works, each peer's numbers and ratios, what failed, and Puna's shares of the machine."""
    works, peers = {}, [peer for peer in outcomes if outcomes[peer]]
    for work in plan.works():
        numbers = {peer: summary.number(outcomes[peer], work.name) for peer in peers}
        works[work.name] = {
            "tokens_per_second": {peer: asdict(found) for peer, found in numbers.items() if found},
            "ratios": {
                peer: round(found, 4)
                for peer in peers
                if peer != "puna" and (found := summary.ratio(numbers.get("puna"), numbers[peer])) is not None
            },
        }
    return {
        "model": model.name,
        "bytes": model.n_bytes,
        "plan": asdict(plan),
        "works": works,
        "load_ms": {peer: [outcome.load_ms for outcome in outcomes[peer]] for peer in peers},
        "others": {peer: [outcome.others for outcome in outcomes[peer]] for peer in peers},
        "failures": {peer: found for peer in peers if (found := summary.failures(outcomes[peer]))},
        "puna": summary.puna_shares(outcomes.get("puna", [])),
    }


def stem(date: str, processor: str, avx2: bool, taken: Iterable[str]) -> str:
    """`DATE-PROCESSOR[-avx2][-N]`, with the first N that no earlier record has."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((?:r|tm)\)|@.*|\bcpu\b", " ", processor.lower())).strip("-")
    base = f"{date}-{slug or 'unknown'}" + ("-avx2" if avx2 else "")
    taken, name, count = set(taken), base, 2
    while name in taken:
        name, count = f"{base}-{count}", count + 1
    return name


def write(folder: pathlib.Path, name: str, record: dict, markdown: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
