"""The order of a run: rounds, in each round the models, for each model the programs one after the other."""

import pathlib
import sys
from dataclasses import dataclass

import files
import machine
import table
from files import Model
from peers import Runner
from works import Outcome, Plan


@dataclass
class Results:
    """Outcomes by model and program, one for each round; load averages before each round."""

    outcomes: dict[Model, dict[str, list[Outcome]]]
    loads: list[list[float]]

    def about(self, peer: str) -> dict:
        """What the program first told of itself."""
        told = (outcome.about for found in self.outcomes.values() for outcome in found[peer] if outcome.about)
        return next(told, {})

    def took_part(self, peer: str) -> bool:
        return any(found[peer] for found in self.outcomes.values())


def turn(order: list[str], round_number: int) -> list[str]:
    """Each round begins with the next one, so that nobody always runs on a machine that somebody has just heated."""
    shift = round_number % len(order)
    return order[shift:] + order[:shift]


def run_rounds(n_rounds: int, base: Plan, runner: Runner, paths: dict[Model, pathlib.Path], order: list[str]) -> Results:
    results = Results({model: {peer: [] for peer in order} for model in paths}, [])
    for index in range(n_rounds):
        results.loads.append(machine.load_average())
        for model, path in paths.items():
            for peer in turn(order, index):
                if runner.refusal(peer, model) is not None:
                    continue
                outcome = runner.measure(peer, path, files.plan_for(model, base))
                results.outcomes[model][peer].append(outcome)
                print(f"round {index + 1}/{n_rounds}  {model.name}  {peer}: {brief(outcome)}", file=sys.stderr, flush=True)
    return results


def brief(outcome: Outcome) -> str:
    """One line of what a process told."""
    parts = [f"{work} {table.rate_text(sorted(rates)[len(rates) // 2])}" for work, rates in outcome.rates.items()]
    return ", ".join(parts + sorted({f"({why})" for why in outcome.errors.values()})) or "nothing"
