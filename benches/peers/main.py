"""Puna beside its peers on the same files, in turn. `benches/peers/run --help` says how."""

import argparse
import datetime
import os
import pathlib
import shlex
import subprocess
import sys

import environment
import files
import machine
import peers
import record
import table
from environment import Environment
from files import Model, Store
from peers import Runner
from rounds import run_rounds
from works import Plan

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "peers"
EPILOG = """Examples:
  benches/peers/run
  benches/peers/run --models smollm2,1b:Q4_K_M,1b:folder --rounds 5
  benches/peers/run --avx2 --models 1b:Q4_0
  benches/peers/run --models smollm2 --busy 2 --peers llama.cpp
  benches/peers/run --seven --no-record

Models: smollm2 (what `puna pull smollm2` fetches), 1b:FORMAT and 7b:FORMAT with random weights, which are written once
(FORMAT is Q4_0, Q8_0, Q4_K, Q4_K_M, Q6_K or BF16), and smollm2:folder, 1b:folder, 7b:folder in bf16 for Transformers."""


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def counts(text: str) -> tuple[int, ...]:
    return tuple(positive(word) for word in words(text))


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benches/peers/run", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=words, help=f"of {', '.join(peers.WORKERS)}; default: all")
    add("--models", type=words, default=[], help=f"default: {','.join(files.DEFAULT_MODELS)}")
    add("--seven", action="store_true", help="allow models of 7B; without --models also run 7b:Q4_0")
    add("--avx2", action="store_true", help="PUNA_ISA=avx2 beside a llama.cpp compiled for AVX2 only")
    add("--rounds", type=positive, default=3)
    add("--threads", type=positive, default=machine.usable_cores(), help="of every program; default: the processors")
    add("-p", "--prompt", type=positive, default=Plan.prompt, help="tokens of the prompt (7B: half)")
    add("-g", "--generate", type=positive, default=Plan.generate, help="tokens to decode (7B: a quarter)")
    add("--handful", type=positive, default=Plan.handful, help="tokens of a short prompt")
    add("--batch", type=counts, default=Plan.batches, help="sequences decoding together")
    add("--busy", type=positive, default=0, help="measure again beside this many endless loops of other programs")
    add("-r", "--repetitions", type=positive, default=Plan.repetitions, help="of each work in a round")
    add("--limit", type=positive, default=900, help="seconds that one process may take")
    add("--python", type=pathlib.Path, help="of an environment that you have; nothing is installed into it")
    add("--puna", type=pathlib.Path, default=ROOT / "target/release/puna")
    add("--smollm2", type=pathlib.Path, help="the GGUF file; default: in $PUNA_HOME or .cache/puna")
    add("--files", type=pathlib.Path, default=CACHE / "files", help="where the written files are kept")
    add("--records", type=pathlib.Path, default=ROOT / "benches/records")
    add("--no-record", action="store_true", help="print the table only")
    return parser.parse_args(given)


def chosen_peers(args: argparse.Namespace) -> list[str]:
    """Raises ValueError with what is wrong about --peers."""
    asked = args.peers if args.peers is not None else ["llama.cpp"] if args.avx2 else list(peers.WORKERS)
    if unknown := [name for name in asked if name not in peers.WORKERS]:
        raise ValueError(f"no peer {unknown[0]}; there are {', '.join(peers.WORKERS)}")
    if args.avx2 and asked != ["llama.cpp"]:
        raise ValueError("--avx2 compares with llama.cpp alone: the others choose their instructions themselves")
    return asked


def find_smollm2(args: argparse.Namespace) -> pathlib.Path | None:
    if args.smollm2:
        return args.smollm2
    home = pathlib.Path(os.environ.get("PUNA_HOME", ROOT / ".cache/puna"))
    return next(iter(sorted(home.rglob(files.SMOLLM2))), None) if home.is_dir() else None


def set_up(args: argparse.Namespace, asked: list[str], flags: tuple[str, ...]) -> Environment:
    if args.python:
        return environment.given(args.python, asked)
    return environment.own(CACHE / ("venv-avx2" if args.avx2 else "venv"), asked, flags, args.avx2)


def make_files(store: Store, models: list[Model]) -> tuple[dict[Model, pathlib.Path], list[str]]:
    """The files that are there now, and why others are not."""
    paths, notes = {}, []
    for model in models:
        try:
            paths[model] = store.make(model)
        except OSError as error:
            notes.append(f"{model.name} was left out: {error}")
    return paths, notes


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def puna_about(args: argparse.Namespace, about: dict) -> dict:
    version = subprocess.run([args.puna, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {"version": version, "commit": commit + changed, "isa": about.get("isa"), "peak_unit": about.get("peak_unit")}


def peer_notes(found: Environment, abouts: dict, flags: tuple[str, ...], avx2: bool) -> list[str]:
    notes = [f"{peer} is missing: {why}" for peer, why in found.missing.items() if peer != "files"]
    build = abouts.get("llama.cpp", {}).get("build")
    if build and not avx2 and (unused := peers.unused_instructions(flags, build)):
        notes.append(f"this llama.cpp was compiled without {', '.join(unused)}, which the processor has")
    return notes


def compare(args: argparse.Namespace, asked: list[str], models: list[Model]) -> dict:
    """Everything from the environment to the record."""
    cpu = machine.processor()
    found = set_up(args, asked, cpu.flags)
    store = Store(args.files, found.python, find_smollm2(args))
    paths, notes = make_files(store, models)
    if not paths:
        raise ValueError("there is nothing to measure. " + ". ".join(notes))
    runner = Runner(args.puna, found.python, args.threads, args.avx2, args.limit, found.missing)
    base = Plan(args.prompt, args.handful, args.generate, args.batch, args.repetitions, args.busy)
    results = run_rounds(args.rounds, base, runner, paths, ["puna", *asked])
    abouts = {peer: results.about(peer) for peer in asked}
    if abouts.get("llama.cpp"):
        abouts["llama.cpp"]["built"] = f"compiled {found.built}"
    command = ["benches/peers/run", *sys.argv[1:]]
    return record.scrubbed({
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(command),
        "processor": {"name": cpu.name, "cores": cpu.cores, "flags": cpu.flags},
        "threads": args.threads, "avx2": args.avx2, "rounds": args.rounds, "repetitions": args.repetitions,
        "load_average": results.loads,
        "puna": puna_about(args, results.about("puna")),
        "peers": {peer: told for peer, told in abouts.items() if told},
        "peers_in_order": [peer for peer in asked if peer in found.missing or results.took_part(peer)],
        "models": [record.model_record(model, files.plan_for(model, base), told)
                   for model, told in results.outcomes.items()],
        "notes": notes + peer_notes(found, abouts, cpu.flags, args.avx2),
    })


def main() -> None:
    args = arguments(sys.argv[1:])
    if not args.puna.is_file():
        sys.exit(f"there is no {args.puna}: `make build` makes it, --puna FILE names one")
    if args.python and not args.python.exists():
        sys.exit(f"there is no {args.python}: --python names the interpreter of an environment, as venv/bin/python")
    if machine.load_average()[0] > 0.5:
        tell("-- this machine is busy: expect wide ranges, and look at the ratios only")
    try:
        found = compare(args, chosen_peers(args), files.chosen_models(args.models, args.seven))
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(table.terminal(found), end="")
    if not args.no_record:
        taken = [path.stem for path in args.records.glob("*.json")]
        name = record.stem(found["date"], found["processor"]["name"], args.avx2, taken)
        record.write(args.records, name, found, table.markdown(found))
        tell(f"-- record: {name}.json and {name}.md")


if __name__ == "__main__":
    main()
