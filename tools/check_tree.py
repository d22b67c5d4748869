"""What grep can say about the tree: words of the glossary, sizes, paths of one machine, registry hosts.

Reads the files that git tracks. Fails on a refused word, a file of more than MAX_LINES before its tests, a path
of somebody's machine or the host name of a package registry; lists files over AIM_LINES and functions over
AIM_FUNCTION (tests may be as long as their cases). Text in quotes or backticks may name what other people's files call things.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
AIM_LINES, MAX_LINES, AIM_FUNCTION = 500, 800, 60

# The plain words of CONTRIBUTING.md's last column, and what to say instead.
WORDS = {
    "d_model": "hidden_size", "n_embd": "hidden_size", "embed_dim": "hidden_size",
    "hidden_dim": "intermediate_size", "ffn_dim": "intermediate_size",
    "n_layer": "n_layers",
    "n_head": "n_heads", "query_groups": "n_kv_heads",
    "head_size": "head_dim", "d_k": "head_dim",
    "n_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "layer_norm_eps": "rms_norm_eps",
    "freq_base": "rope_theta", "rope_base": "rope_theta",
    "wte": "embed_tokens",
    "c_attn": "q_proj k_proj v_proj", "out_proj": "o_proj",
    "c_fc1": "gate_proj", "fc1": "gate_proj",
    "ln_1": "input_norm", "ln_f": "norm", "rms_1": "input_norm",
    "wcls": "lm_head", "embed_out": "lm_head",
    "shared_weights": "tie_word_embeddings",
    "neox": "HalfSplit",
}
WORD = re.compile(r"\b(" + "|".join(WORDS) + r")\b", re.IGNORECASE)
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`')

# Written with brackets so that this file does not find itself.
PATHS = re.compile(r"(?<![\w.~-])/(?:w[o]rk|r[o]ot|f[a]rm|h[o]me/\w+|U[s]ers/\w+)/|(?<![\w.~-])/t[m]p/\w")
HOSTS = re.compile(r"\b(?:c[r]ates|p[y]pi|n[p]mjs|pythonh[o]sted)\.(?:io|org|com)\b")
LOCKS = {"Cargo.lock"}

TEST_MODULE = re.compile(r"^(pub\(crate\) )?mod tests\b")
TABLE_ROW = re.compile(r"^[\s0-9a-fA-FxX_,.\[\]()-]+$")
FUNCTION = re.compile(r"^(\s*)(?:pub(?:\([^)]*\))? )?(?:const )?(?:unsafe )?(?:extern \"C\" )?fn (\w+)")


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in sorted(filter(None, listed.decode().split("\0"))):
        path = ROOT / name
        if path.is_file():
            yield name, path.read_bytes()


def refused_words(lines):
    """(line number, word) outside quotes and backticks."""
    for number, line in enumerate(lines, 1):
        for match in WORD.finditer(QUOTED.sub("", line)):
            yield number, match.group(1)


def lines_before_tests(lines):
    """Lines up to the test module; rows that hold only numbers (tables of constants) do not count."""
    count = 0
    for line in lines:
        if TEST_MODULE.match(line):
            break
        if not (line.strip() and TABLE_ROW.match(line)):
            count += 1
    return count


def long_functions(lines):
    """(line number, name, length) of functions over AIM_FUNCTION lines, by rustfmt's indentation."""
    for start, line in enumerate(lines):
        if TEST_MODULE.match(line):
            return
        match = FUNCTION.match(line)
        if not match or line.endswith(("}", ";")):
            continue
        indent = match.group(1)
        for end in range(start + 1, len(lines)):
            if lines[end] == indent + "}":
                if end - start + 1 > AIM_FUNCTION:
                    yield start + 1, match.group(2), end - start + 1
                break
            if lines[end].startswith(indent + ")") and lines[end].endswith(";"):
                break  # a declaration without a body


def check(name, data):
    """(errors, notes) of one file."""
    errors, notes = [], []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return errors, notes
    lines = text.splitlines()
    base = name.rsplit("/", 1)[-1]
    for number, line in enumerate(lines, 1):
        if PATHS.search(line):
            errors.append(f"{name}:{number}: a path of one machine: {line.strip()[:100]}")
        if base not in LOCKS and HOSTS.search(line):
            errors.append(f"{name}:{number}: the host name of a package registry: {line.strip()[:100]}")
    if not name.endswith(".rs"):
        return errors, notes
    if base != "names.rs":
        for number, word in refused_words(lines):
            errors.append(f"{name}:{number}: say {WORDS[word.lower()]}, not {word} (glossary)")
    if "/tests/" in name or base == "tests.rs":
        return errors, notes
    count = lines_before_tests(lines)
    if count > MAX_LINES:
        errors.append(f"{name}: {count} lines before tests, at most {MAX_LINES}")
    elif count > AIM_LINES:
        notes.append(f"{name}: {count} lines before tests, the aim is {AIM_LINES}")
    for number, function, length in long_functions(lines):
        notes.append(f"{name}:{number}: fn {function} has {length} lines, the aim is {AIM_FUNCTION}")
    return errors, notes


def main():
    errors, notes, sizes = [], [], {}
    for name, data in tracked_files():
        found_errors, found_notes = check(name, data)
        errors += found_errors
        notes += found_notes
        if name.endswith(".rs"):
            folder = "/".join(name.split("/")[:2])
            files, lines = sizes.get(folder, (0, 0))
            sizes[folder] = (files + 1, lines + data.count(b"\n"))
    for folder, (files, lines) in sorted(sizes.items()):
        print(f"{folder:<20} {files:>4} files {lines:>7} lines")
    for note in notes:
        print(f"-- {note}")
    for error in errors:
        print(f"error: {error}")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
