"""The scratch environment of the peers: what is installed with pip, how llama.cpp is compiled, what could not be had.

Each peer is optional. An environment lies under .cache/peers and is used again; `--python` names another one, which is
never installed into.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

REQUIREMENTS = {
    "files": ["numpy", "gguf==0.19.0"],
    "llama.cpp": ["llama-cpp-python==0.3.36"],
    "transformers": ["torch==2.15.0", "transformers==5.23.0"],
    "openvino": ["openvino-genai==2026.4.1.0"],
}
SIZES = {"llama.cpp": "compiles for some minutes", "transformers": "several GB", "openvino": "about 100 MB"}
MODULES = {"files": "gguf", "llama.cpp": "llama_cpp", "transformers": "torch, transformers", "openvino": "openvino_genai"}

# Switch of llama.cpp's build -> the processor's flag that it needs, as /proc/cpuinfo spells it.
SWITCHES = {
    "SSE42": "sse4_2", "AVX": "avx", "AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16",
    "AMX_TILE": "amx_tile", "AMX_INT8": "amx_int8", "AMX_BF16": "amx_bf16",
}
AVX2_SWITCHES = ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")


@dataclass
class Environment:
    """`missing` says of each peer that is not there why it is not."""

    python: pathlib.Path
    missing: dict[str, str] = field(default_factory=dict)
    built: str = "not by this program"


def llama_switches(flags: Collection[str], avx2: bool, clang: bool) -> list[str]:
    """Arguments for CMake. Each switch is named, on or off, so that the record says what was compiled.

    Without clang there is no AMX: gcc 12's code for it ends in an illegal instruction. `-march=native` would bring it
    back, and AVX-512 to the narrow flavour, so that those two are only tuned for this processor.
    """
    if not avx2 and "avx" not in flags:
        return ["-DGGML_NATIVE=ON"]
    wanted = set(AVX2_SWITCHES if avx2 else SWITCHES)
    if not clang:
        wanted = {name for name in wanted if not name.startswith("AMX")}
    on = {name for name in wanted if SWITCHES[name] in flags}
    native = "-mtune=native" if avx2 or not clang else "-march=native"
    compile_flags = [f"-DCMAKE_{language}_FLAGS={native}" for language in ("C", "CXX")]
    return ["-DGGML_NATIVE=OFF", *compile_flags] + [f"-DGGML_{name}={'ON' if name in on else 'OFF'}" for name in SWITCHES]


def compiler() -> dict[str, str]:
    """CC and CXX: clang where there is one, else nothing, which is CMake's own choice."""
    if shutil.which("clang") and shutil.which("clang++"):
        return {"CC": "clang", "CXX": "clang++"}
    return {}


def last_line(text: str) -> str:
    """The last line that says something of what a program told on standard error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|\w*Error|ERROR)\b", line)]
    return (errors or lines or ["no message"])[-1][:300]


def import_error(python: pathlib.Path, peer: str) -> str | None:
    """Why the peer cannot be imported, or nothing."""
    done = subprocess.run([python, "-c", f"import {MODULES[peer]}"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return last_line(done.stderr) if done.returncode > 0 else f"its import was ended by signal {-done.returncode}"


def pip_install(python: pathlib.Path, peer: str, settings: dict[str, str]) -> str | None:
    """Installs one peer; says why it could not."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS[peer]]
    if peer == "llama.cpp":
        # pip's cache knows no compiler's flags: it would give the one flavour's build to the other.
        command += ["--no-cache-dir", "--force-reinstall", "--no-binary", "llama-cpp-python"]
    shown = " ".join(f"{key}='{value}'" for key, value in settings.items())
    note = f" ({SIZES[peer]})" if peer in SIZES else ""
    print(f"== {shown} pip install {' '.join(REQUIREMENTS[peer])}{note}".replace("==  ", "== "), file=sys.stderr)
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"pip: {last_line(done.stderr)}"


def given(python: pathlib.Path, peers: list[str]) -> Environment:
    """An environment of somebody else's: looked at, never changed."""
    environment = Environment(python)
    for peer in ["files", *peers]:
        if why := import_error(python, peer):
            environment.missing[peer] = why
    return environment


def own(folder: pathlib.Path, peers: list[str], flags: Collection[str], avx2: bool) -> Environment:
    """Makes the environment, or completes it. llama.cpp is compiled again where its switches have changed."""
    python = folder / "bin" / "python"
    if not python.exists():
        print("== Make a scratch environment for the peers", file=sys.stderr)
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], capture_output=True, text=True)
        if made.returncode != 0:
            python.unlink(missing_ok=True)
            reason = (made.stderr or made.stdout).strip().splitlines()[-1:]
            raise ValueError(f"cannot make an environment in {folder}: {' '.join(reason)}")
    chosen = compiler()
    switches = " ".join(llama_switches(flags, avx2, clang=bool(chosen)))
    environment = Environment(python, built=f"{chosen.get('CC', 'the default compiler')} {switches}")
    stamp = folder / "llama_cpp_built.txt"
    for peer in ["files", *peers]:
        settings = chosen | {"CMAKE_ARGS": switches} if peer == "llama.cpp" else {}
        current = peer != "llama.cpp" or (stamp.exists() and stamp.read_text(encoding="utf-8") == environment.built)
        if current and import_error(python, peer) is None:
            continue
        if why := pip_install(python, peer, settings) or import_error(python, peer):
            environment.missing[peer] = why
        elif peer == "llama.cpp":
            stamp.write_text(environment.built, encoding="utf-8")
    return environment
