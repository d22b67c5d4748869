"""Who is measured, and one measuring process of each: a command enters, an Outcome leaves, whatever became of the process.

A process loads the model, measures and ends, so that no other program is resident or spinning while one is timed.
"""

import json
import os
import pathlib
import signal
import subprocess
from dataclasses import dataclass, field

import busy
from environment import SWITCHES, last_line
from files import Model
from machine import Neighbours
from works import Outcome, Plan, add_busy, job_text, parse_lines

HERE = pathlib.Path(__file__).resolve().parent
# Peer -> its worker, and whether it reads a folder (else a GGUF file).
WORKERS = {
    "llama.cpp": ("worker_llama.py", False),
    "openvino": ("worker_openvino.py", False),
    "transformers": ("worker_transformers.py", True),
}
# What llama.cpp tells about its own build; it does not tell of the other switches.
TOLD_SWITCHES = ("AVX", "AVX_VNNI", "AVX2", "F16C", "FMA", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16",
                 "AMX_INT8")


@dataclass(frozen=True)
class Runner:
    """What every process of a run has in common. `limit` is in seconds."""

    puna: pathlib.Path
    python: pathlib.Path
    threads: int
    avx2: bool
    limit: int
    missing: dict[str, str] = field(default_factory=dict)

    def refusal(self, peer: str, model: Model) -> str | None:
        """Why the peer has no part in this model; an empty text where its kind of file is another."""
        if peer in self.missing:
            return self.missing[peer]
        if peer != "puna" and WORKERS[peer][1] != model.is_folder:
            return ""
        return None

    def measure(self, peer: str, path: pathlib.Path, plan: Plan) -> Outcome:
        """First with the machine to itself, then, where the plan says so, beside busy loops."""
        others, quiet = Neighbours(), plan.quiet()
        outcome = self.measure_once(peer, path, quiet)
        outcome.others = others.share()
        if plan.busy:
            with busy.neighbours(plan.busy):
                add_busy(outcome, self.measure_once(peer, path, quiet), plan)
        return outcome

    def measure_once(self, peer: str, path: pathlib.Path, plan: Plan) -> Outcome:
        return self.measure_puna(path, plan) if peer == "puna" else self.measure_peer(peer, path, plan)

    def measure_peer(self, peer: str, path: pathlib.Path, plan: Plan) -> Outcome:
        script = str(HERE / WORKERS[peer][0])
        job = job_text(str(path), self.threads, plan)
        outcome, why = run_worker([str(self.python), script, job], self.limit)
        build = str(outcome.about.get("build", ""))
        if peer == "llama.cpp" and self.avx2 and "AVX512 = 1" in build:
            why, outcome.rates = "this build of llama.cpp uses AVX-512", {}
        return with_reason(outcome, plan, why)

    def measure_puna(self, path: pathlib.Path, plan: Plan) -> Outcome:
        """Two runs of `puna bench`: everything with the long prompt, then the handful of rows."""
        outcome = Outcome()
        for arguments in puna_arguments(plan):
            command = [str(self.puna), "bench", "--json", "-m", str(path), "--threads", str(self.threads), *arguments]
            settings = {"PUNA_ISA": "avx2"} if self.avx2 else {}
            text, why = run_process(command, settings, self.limit)
            if why:
                return with_reason(outcome, plan, why)
            add_puna_report(outcome, json.loads(text), plan)
        return outcome


def puna_arguments(plan: Plan) -> list[list[str]]:
    repetitions = ["-r", str(plan.repetitions)]
    batch = ["--batch", ",".join(map(str, plan.batches))] if plan.batches else []
    long = ["-p", str(plan.prompt), "-g", str(plan.generate), *repetitions, *batch]
    return [long, ["-p", str(plan.handful), "-g", "1", *repetitions]]


def add_puna_report(outcome: Outcome, report: dict, plan: Plan) -> None:
    """The first report fills everything, the second the handful; each number is the median of its repetitions."""
    prefill, handful, *decodes = plan.works()
    if outcome.about:
        outcome.rates[handful.name] = [report["prefill_tps"]]
        return
    told = ("isa", "bandwidth_gbs", "peak_bf16_tflops", "peak_unit", "decode_bandwidth_share", "prefill_peak_share")
    outcome.about = {key: report[key] for key in told}
    outcome.load_ms = report["load_ms"]
    outcome.rates[prefill.name] = [report["prefill_tps"]]
    rates = {1: report["decode_tps"]} | {int(n): rate for n, rate in report["batch_decode_tps"].items()}
    for work in decodes:
        outcome.rates[work.name] = [rates[work.sequences]]


def run_process(command: list[str], settings: dict[str, str], limit: int) -> tuple[str, str | None]:
    """Standard output, and why the process came to no good end. What came before a crash is kept."""
    # No model is looked up anywhere but here, and no library reports home.
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PUNA_OFFLINE": "1"} | settings
    with subprocess.Popen(
        command, env=os.environ | settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
            why = reason(process.returncode, errors)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            why = f"not done after {limit} s"
    return output, why


def reason(status: int, errors: str) -> str | None:
    if status == 0:
        return None
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return last_line(errors)


def run_worker(command: list[str], limit: int) -> tuple[Outcome, str | None]:
    output, why = run_process(command, {}, limit)
    whole = output[: output.rfind("\n") + 1]
    return parse_lines(whole.splitlines()), why


def with_reason(outcome: Outcome, plan: Plan, why: str | None) -> Outcome:
    """Gives the reason to every work that has neither a number nor an error of its own."""
    for work in plan.works():
        if why and work.name not in outcome.rates:
            outcome.errors.setdefault(work.name, why)
    return outcome


def unused_instructions(flags: tuple[str, ...], build: str) -> list[str]:
    """What the processor has and this build of llama.cpp does not use: its numbers could be better."""
    return [name for name in TOLD_SWITCHES if SWITCHES[name] in flags and f" {name} = 1" not in f" {build}"]
