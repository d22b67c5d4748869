"""Which files a run takes, and making those that are not there: random weights, and bf16 folders for Transformers.

A model is named `smollm2`, `1b:FORMAT` or `7b:FORMAT` (GGUF files), or `smollm2:folder`, `1b:folder`, `7b:folder`.
"""

import pathlib
import subprocess
import sys
from dataclasses import dataclass, replace

import machine
from shapes import FORMATS, SHAPES, total_bytes
from works import Plan

DEFAULT_MODELS = ("smollm2", "smollm2:folder", "1b:Q4_0", "1b:Q8_0")
SEVEN_MODELS = ("7b:Q4_0",)
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_FOLDER_BYTES = 270_000_000
HERE = pathlib.Path(__file__).resolve().parent


@dataclass(frozen=True)
class Model:
    """`kind` is smollm2 or a shape; `form` is a GGUF format or `folder`."""

    kind: str
    form: str

    @property
    def name(self) -> str:
        return self.kind if self.form == "" else f"{self.kind}:{self.form}"

    @property
    def is_folder(self) -> bool:
        return self.form == "folder"

    @property
    def n_bytes(self) -> int:
        """Of the file, or of what is in the folder."""
        if self.kind == "smollm2":
            return SMOLLM2_FOLDER_BYTES
        return total_bytes(SHAPES[self.kind], "BF16" if self.is_folder else self.form)


def parse_model(name: str) -> Model:
    kind, _, form = name.partition(":")
    forms = ("", "folder") if kind == "smollm2" else (*FORMATS, "folder")
    if kind != "smollm2" and kind not in SHAPES or form not in forms:
        raise ValueError(f"no model {name}; there are smollm2, smollm2:folder, and 1b: and 7b: with {', '.join(forms)}")
    return Model(kind, form)


def chosen_models(names: list[str], seven: bool) -> list[Model]:
    """What was asked for, else the default; 7B only where it was asked for twice, since it takes so much."""
    asked = names or [*DEFAULT_MODELS, *(SEVEN_MODELS if seven else ())]
    models = [parse_model(name) for name in asked]
    if not seven and any(model.kind == "7b" for model in models):
        raise ValueError("a model of 7B needs --seven: it takes gigabytes of disk and memory")
    return models


def plan_for(model: Model, plan: Plan) -> Plan:
    """7B takes a quarter of the tokens and half of the prompt, so that a round ends before the machine drifts."""
    if model.kind != "7b":
        return plan
    return replace(plan, prompt=max(1, plan.prompt // 2), generate=max(1, plan.generate // 4))


def lacking(model: Model, to_write: int, disk: int, memory: int | None) -> str | None:
    """What there is too little of. Beside the weights there are activations, caches and copies that a load makes."""
    gb = 1e9
    if to_write > disk * 0.9:
        return f"{model.name} needs {to_write / gb:.1f} GB of disk, {disk / gb:.1f} GB are free"
    need = int(model.n_bytes * 2 + 1e9)
    if memory is not None and need > memory:
        return f"{model.name} needs {need / gb:.1f} GB of memory, {memory / gb:.1f} GB are free"
    return None


@dataclass(frozen=True)
class Store:
    """Where files are kept, and the Python that writes them."""

    folder: pathlib.Path
    python: pathlib.Path
    smollm2: pathlib.Path | None

    def path(self, model: Model) -> pathlib.Path:
        if model.kind == "smollm2" and not model.is_folder:
            return self.smollm2 or self.folder / SMOLLM2
        return self.folder / (f"{model.kind}-bf16" if model.is_folder else f"{model.kind}-{model.form}.gguf")

    def source(self, model: Model) -> Model:
        """The GGUF file whose weights a folder has."""
        return Model(model.kind, "" if model.kind == "smollm2" else "BF16")

    def make(self, model: Model) -> pathlib.Path:
        """The model's path; raises OSError that says what is lacking."""
        path = self.path(model)
        steps = [] if path.exists() else [model]
        if steps and model.is_folder and not self.path(self.source(model)).exists():
            steps.insert(0, self.source(model))
        to_write = sum(step.n_bytes for step in steps)
        if why := lacking(model, to_write, machine.free_disk(self.folder), machine.available_memory()):
            raise OSError(why)
        for step in steps:
            self.write(step)
        return path

    def write(self, model: Model) -> None:
        if model.kind == "smollm2" and not model.is_folder:
            raise OSError(f"there is no {SMOLLM2}: `puna pull smollm2` fetches it, --smollm2 FILE names one that you have")
        path = self.path(model)
        print(f"== Write {path.name}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        script, arguments = "write_gguf.py", [model.kind, model.form]
        if model.is_folder:
            script, arguments = "write_folder.py", [str(self.path(self.source(model)))]
        done = subprocess.run([self.python, HERE / script, *arguments, path], check=False)
        if done.returncode != 0:
            raise OSError(f"{path.name} could not be written: {script} ended with status {done.returncode}")
