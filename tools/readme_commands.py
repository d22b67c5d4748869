"""Runs the fenced blocks of a Markdown file whose info string is `sh run`; stops at the first that fails.

Each block is one bash script (`set -euo pipefail`) in the repository's root, with its standard input closed.
A block that is only ```sh is shown to the reader and not run (`make test` itself, for one).
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARK = "```sh run"
LIMIT_SECONDS = 900


def blocks(text):
    """(line number, script) of every marked block."""
    found, script, start = [], None, 0
    for number, line in enumerate(text.splitlines(), 1):
        if script is None:
            if line.strip() == MARK:
                script, start = [], number
        elif line.strip() == "```":
            found.append((start, "\n".join(script)))
            script = None
        else:
            script.append(line)
    if script is not None:
        raise ValueError(f"the block at line {start} is never closed")
    return found


def main():
    path = ROOT / sys.argv[1]
    found = blocks(path.read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"{path.name}: no block is marked `{MARK}`, so nothing proves its commands")
    for line, script in found:
        print(f"{path.name}:{line}\n{script}", flush=True)
        command = ["bash", "-euo", "pipefail", "-c", script]
        try:
            done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            sys.exit(f"{path.name}:{line}: still running after {LIMIT_SECONDS} s")
        if done.returncode != 0:
            sys.exit(f"{path.name}:{line}: exit status {done.returncode}")
    print(f"{len(found)} blocks ran")


if __name__ == "__main__":
    main()
