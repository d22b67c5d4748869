"""A record as a table: for the terminal in aligned columns, for the repository in Markdown. Both say the same."""

from collections.abc import Iterable

QUIET = 0.03  # of the processors' time may be others' before a record says so


def rate_text(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def number_text(number: dict | None) -> str:
    if number is None:
        return "-"
    if len(number["rounds"]) == 1:
        return rate_text(number["median"])
    return f"{rate_text(number['median'])} ({rate_text(number['least'])}–{rate_text(number['most'])})"


def rows(record: dict) -> list[list[str]]:
    """A head, then a row for each work of each model."""
    peers = record["peers_in_order"]
    head = ["model", "work", "puna"]
    for peer in peers:
        head += [peer, "puna / it"]
    found = [head]
    for model in record["models"]:
        for work, told in model["works"].items():
            numbers, ratios = told["tokens_per_second"], told["ratios"]
            row = [model["model"], work, number_text(numbers.get("puna"))]
            for peer in peers:
                row += [number_text(numbers.get(peer)), f"{ratios[peer]:.2f}" if peer in ratios else "-"]
            found.append(row)
    return found


def plain(cells: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        texts = [cell.ljust(width) if column < 2 else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines) + "\n"


def markdown_table(cells: list[list[str]]) -> str:
    head, *body = cells
    rule = ["---", "---"] + ["---:"] * (len(head) - 2)
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *body])


def machine_lines(record: dict) -> Iterable[str]:
    cpu, puna = record["processor"], record["puna"]
    yield f"{cpu['name']}, {cpu['cores']} cores; {record['threads']} threads; {', '.join(cpu['flags'])}"
    yield f"Load average at the start: {', '.join(map(str, record['load_average'][0]))}"
    yield f"puna {puna['version']}, commit {puna['commit']}, instruction set {puna.get('isa', 'unknown')}"
    for peer, about in record["peers"].items():
        yield f"{peer}: " + "; ".join(filter(None, (about.get("version"), about.get("build"), about.get("built"))))


METHOD = (
    "Tokens each second, medians of {rounds} round(s) (least–most) of {repetitions} repetitions; a ratio is the median "
    "over rounds. Each round runs every program once, one after the other; each loads the model, measures and ends. "
    "'-' is no number: the reason is below, or the program does not read this kind of file (llama.cpp and OpenVINO are "
    "given GGUF, Transformers a bf16 folder). Puna and OpenVINO also choose each next token; llama.cpp and Transformers "
    "are spared that."
)


def note_lines(record: dict) -> Iterable[str]:
    """What a reader must know: how it was measured, shares of the machine, what is absent and why."""
    yield METHOD.format(rounds=record["rounds"], repetitions=record["repetitions"])
    for model in record["models"]:
        yield from (f"{model['model']}{line}" for line in model_lines(model))
    yield from record["notes"]


def model_lines(model: dict) -> Iterable[str]:
    if puna := model["puna"]:
        yield (f": puna bench reads {puna['bandwidth_gbs']:.1f} GB/s and multiplies at "
               f"{puna['peak_bf16_tflops']:.3f} TFLOP/s; Puna's decode takes {puna['decode_bandwidth_share']:.0%} of the first, "
               f"its prefill {puna['prefill_peak_share']:.0%} of the second")
    most = {peer: max((share for share in shares if share is not None), default=0.0)
            for peer, shares in model["others"].items()}
    if max(most.values(), default=0.0) > QUIET:
        told = ", ".join(f"{share:.0%} beside {peer}" for peer, share in most.items())
        yield f": not quiet: other programs took up to {told} of the processors' time"
    for peer, failures in model["failures"].items():
        yield from (f", {peer}: {failure}" for failure in failures)


def markdown(record: dict) -> str:
    parts = [f"# Puna beside its peers, {record['date']}\n"]
    parts += [f"- {line}" for line in machine_lines(record)]
    parts += ["", f"`{record['command']}`", "", markdown_table(rows(record))]
    parts += [f"- {line}" for line in note_lines(record)]
    return "\n".join(parts) + "\n"


def terminal(record: dict) -> str:
    parts = [*machine_lines(record), "", plain(rows(record))]
    return "\n".join([*parts, *note_lines(record)]) + "\n"
