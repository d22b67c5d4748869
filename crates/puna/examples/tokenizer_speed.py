"""Tokenising speed beside SentencePiece and `tokenizers`, one thread, in turn, as medians of ratios.

    cargo build --release -p puna --example tokenizer_speed
    python crates/puna/examples/tokenizer_speed.py MODEL TEXT [ROUNDS]

MODEL is a SentencePiece tokenizer.model with its tokenizer.json beside it, or a tokenizer.json
alone; TEXT is UTF-8. Wants sentencepiece and numpy. SentencePiece is called line by line and as one
batch with num_threads=1, without Python's garbage collector, and the better of the two counts. What
is left of Python is the making of the lists of ids: their share is measured and printed, and not
taken off. The `tokenizers` library is the Rust crate without Python. All ids are compared.
"""

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy

STRING_BYTES = 200_000


def cut(text, limit):
    return text.encode()[:limit].decode(errors="ignore")


def forms(text):
    # The white space of Rust's char::is_whitespace, which lacks U+001C to U+001F.
    head = cut(text, 2 * STRING_BYTES)
    word = "".join(c for c in head if not c.isspace() or "\x1c" <= c <= "\x1f")
    return {
        "lines": text.split("\n"),
        "string": [cut(text, STRING_BYTES)],
        "word": [cut(word, STRING_BYTES)],
    }


def peer(model, parts):
    """Seconds of the better form, the share that making the lists takes of them, and the ids."""
    start = time.perf_counter()
    batch = model.encode(parts, num_threads=1)
    batch_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for part in parts:
        model.encode(part)
    seconds = min(batch_seconds, time.perf_counter() - start)
    arrays = [numpy.array(ids, dtype=numpy.uint32) for ids in batch]
    start = time.perf_counter()
    lists = [array.tolist() for array in arrays]
    share = (time.perf_counter() - start) / seconds
    assert len(lists) == len(parts)
    return seconds, share, numpy.concatenate(arrays)


def main():
    gc.disable()
    path, text_path = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    with open(text_path, encoding="utf-8", newline="") as file:
        text = file.read()
    is_json = path.endswith(".json")
    classes = ["fast", "library"] if is_json else ["slow", "fast", "library"]
    if not os.path.exists(os.path.splitext(path)[0] + ".json"):
        classes.remove("library")
    if not is_json:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=path)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    command = [os.path.join(target, "release", "examples", "tokenizer_speed"), path, text_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as own:
        def run(job):
            own.stdin.write(job + "\n")
            own.stdin.flush()
            return own.stdout.readline().split()

        for form, parts in forms(text).items():
            n_bytes = sum(len(part.encode()) for part in parts)
            speeds = {name: [] for name in (["sentencepiece"] if not is_json else []) + classes}
            shares = []
            for index in range(rounds):
                if not is_json:
                    seconds, share, expected = peer(model, parts)
                    shares.append(share)
                    speeds["sentencepiece"].append(n_bytes / 1e6 / seconds)
                for name in classes:
                    with tempfile.NamedTemporaryFile() as file:
                        answer = run(f"{name} {form}" + (f" {file.name}" if index == 0 else ""))
                        seconds, n, n_ids = float(answer[0]), int(answer[1]), int(answer[2])
                        assert n == n_bytes, (n, n_bytes)
                        if index == 0 and not is_json and name == "slow":
                            same = numpy.array_equal(numpy.fromfile(file.name, "<u4"), expected)
                            print(f"{form}: {n_ids} ids of {name}, equal to SentencePiece: {same}")
                        if index == 0 and name == "fast":
                            fast = numpy.fromfile(file.name, "<u4")
                        if index == 0 and name == "library":
                            same = numpy.array_equal(numpy.fromfile(file.name, "<u4"), fast)
                            print(f"{form}: {n_ids} ids of fast, equal to the library: {same}")
                    speeds[name].append(n_bytes / 1e6 / seconds)
            report(form, speeds)
            if shares:
                share = statistics.median(shares)
                print(f"{form:7} Python's lists take {share:.1%} of SentencePiece's time")


def report(form, speeds):
    for name, values in speeds.items():
        print(f"{form:7} {name:14} {statistics.median(values):8.2f} MB/s", end="")
        for base in ("sentencepiece", "library"):
            if base in speeds and base != name:
                ratio = statistics.median(a / b for a, b in zip(values, speeds[base]))
                print(f"   {ratio:7.2f} x {base}", end="")
        print()


if __name__ == "__main__":
    main()
