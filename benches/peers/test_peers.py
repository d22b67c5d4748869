"""The comparison without any peer: what is pure, and processes that crash, stall or tell nonsense."""

import json
import pathlib
import sys
import tempfile
import unittest

import busy
import environment
import files
import machine
import main
import peers
import record
import rounds
import shapes
import summary
import table
import worker
from files import Model, Store
from peers import Runner
from works import Outcome, Plan, Work, add_busy, job_text, parse_lines

PLAN = Plan(prompt=8, handful=2, generate=4, batches=(3,), repetitions=2)
CPUINFO = """processor\t: 0
model name\t: Some  CPU @ 2.0GHz
flags\t\t: fpu avx avx2 amx_int8

processor\t: 1
flags\t\t: fpu
"""


def outcome(**rates: list[float]) -> Outcome:
    return Outcome({name.replace("_", " "): told for name, told in rates.items()})


class Shapes(unittest.TestCase):
    def test_parameters(self):
        # Of TinyLlama 1.1B and LLaMA 7B, whose shapes these are.
        for name, expected in [("1b", 1_100_048_384), ("7b", 6_738_415_616)]:
            found = shapes.tensors(shapes.SHAPES[name], "BF16")
            self.assertEqual(sum(tensor.rows * tensor.columns for tensor in found), expected)
            self.assertEqual(len(found), len({tensor.name for tensor in found}))

    def test_rows_are_whole_blocks(self):
        for shape in shapes.SHAPES.values():
            for name in shapes.FORMATS:
                for tensor in shapes.tensors(shape, name):
                    self.assertEqual(tensor.columns % shapes.BLOCKS[tensor.format][0], 0, tensor)

    def test_formats(self):
        def formats(name):
            return {tensor.name: tensor.format for tensor in shapes.tensors(shapes.SHAPES["7b"], name)}

        self.assertEqual(formats("Q4_0")["output.weight"], "Q6_K")
        self.assertEqual(formats("Q8_0")["output.weight"], "Q8_0")
        mixed = [layer for layer in range(32) if formats("Q4_K_M")[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
        self.assertEqual(mixed, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31])
        with self.assertRaises(ValueError):
            shapes.tensors(shapes.SHAPES["1b"], "Q9_9")

    def test_bytes(self):
        tensor = shapes.Tensor("a", 4, 512, "Q4_K")
        self.assertEqual(tensor.n_bytes, 4 * 2 * 144)

    def test_vocabulary(self):
        tokens, types, merges = shapes.vocabulary(32000)
        self.assertEqual((len(tokens), len(set(tokens)), len(types)), (32000, 32000, 32000))
        self.assertEqual(len(merges), 32000 - 259)
        # GPT-2 writes a space as U+0120 and a line feed as U+010A.
        letters = shapes.byte_letters()
        self.assertEqual((letters[0x20], letters[0x0A], letters[0x41]), ("\u0120", "\u010a", "A"))
        for merge in merges[::997]:
            first, second = merge.split(" ")
            self.assertIn(first + second, tokens)


class Machine(unittest.TestCase):
    def test_cpuinfo(self):
        self.assertEqual(machine.parse_cpuinfo(CPUINFO), ("Some CPU @ 2.0GHz", {"fpu", "avx", "avx2", "amx_int8"}))
        self.assertEqual(machine.parse_cpuinfo("Features\t: asimd i8mm\n"), ("", {"asimd", "i8mm"}))

    def test_busy_ticks(self):
        self.assertEqual(machine.parse_busy_ticks("cpu  10 20 30 1000 500 1 2 4 99 99\ncpu0 1 1 1\n"), 67)


class Build(unittest.TestCase):
    def switches(self, flags, avx2=False, clang=True):
        told = environment.llama_switches(flags.split(), avx2, clang)
        self.assertEqual("-DCMAKE_CXX_FLAGS=-march=native" in told, clang and not avx2)
        return {switch.split("=")[0][7:]: switch.endswith("=ON") for switch in told if switch.startswith("-DGGML_")}

    def test_flavours(self):
        flags = "sse4_2 avx avx2 fma f16c bmi2 avx512f avx512_vnni amx_tile amx_int8 amx_bf16"
        best = self.switches(flags)
        self.assertTrue(best["AVX512"] and best["AVX512_VNNI"] and best["AMX_INT8"])
        self.assertFalse(best["NATIVE"] or best["AVX512_BF16"])
        self.assertFalse(self.switches(flags, clang=False)["AMX_INT8"])
        narrow = self.switches(flags, avx2=True)
        self.assertEqual({name for name, on in narrow.items() if on}, set(environment.AVX2_SWITCHES))
        self.assertEqual(environment.llama_switches(["asimd"], False, True), ["-DGGML_NATIVE=ON"])

    def test_unused_instructions(self):
        build = "CPU : AVX = 1 | AVX2 = 1 | FMA = 1 |"
        self.assertEqual(peers.unused_instructions(("avx", "avx2", "fma", "avx512f"), build), ["AVX512"])

    def test_import_errors(self):
        python = pathlib.Path(sys.executable)
        environment.MODULES["absent"] = "there_is_no_such_module"
        self.addCleanup(environment.MODULES.pop, "absent")
        found = environment.given(python, ["absent"])
        self.assertIn("No module named 'there_is_no_such_module'", found.missing["absent"])

    def test_last_line(self):
        self.assertEqual(environment.last_line("Trace\nERROR: no match\n[notice] a new pip\n"), "ERROR: no match")
        self.assertEqual(environment.last_line("\n"), "no message")


class Protocol(unittest.TestCase):
    def test_names(self):
        self.assertEqual([work.name for work in PLAN.works()], ["prefill 8", "prefill 2", "decode 4", "decode 4 × 3"])

    def test_busy(self):
        plan = Plan(prompt=8, handful=2, generate=4, batches=(), busy=3)
        names = ["prefill 8", "prefill 2", "decode 4"]
        self.assertEqual([work.name for work in plan.works()], names + [f"{name}, 3 busy" for name in names])
        self.assertEqual([work.name for work in plan.quiet().works()], names)
        outcome = Outcome(rates={"decode 4": [8.0]})
        add_busy(outcome, Outcome(rates={"decode 4": [2.0]}, errors={"prefill 8": "no"}), plan)
        self.assertEqual(outcome.rates, {"decode 4": [8.0], "decode 4, 3 busy": [2.0]})
        self.assertEqual(outcome.errors, {"prefill 8, 3 busy": "no"})

    def test_neighbours_end_with_the_block(self):
        with self.assertRaises(KeyError), busy.neighbours(2) as loops:
            self.assertEqual([loop.poll() for loop in loops], [None, None])
            raise KeyError
        self.assertTrue(all(loop.returncode < 0 for loop in loops))

    def test_lines(self):
        lines = ['{"load_ms": 3}', '{"about": {"version": "1"}}', "", '{"work": "a", "tokens_per_second": 2.5}',
                 '{"work": "a", "tokens_per_second": 3}', '{"work": "b", "error": "no"}']
        found = parse_lines(lines)
        self.assertEqual((found.rates, found.errors, found.load_ms), ({"a": [2.5, 3]}, {"b": "no"}, 3))
        for line in ('{"work": "a"}', '{"work": 1, "error": "no"}', "[]", "text"):
            with self.assertRaises(ValueError):
                parse_lines([line])

    def test_worker(self):
        class Half:
            def prefill(self, n_tokens):
                return n_tokens / 100

            def decode(self, n_sequences, n_tokens):
                raise MemoryError("no\nroom")

        told = []
        for work in json.loads(job_text("m", 1, PLAN))["works"]:
            worker.measure(Half(), work, 2, told.append)
        self.assertEqual(told[:2], [{"work": "prefill 8", "tokens_per_second": 100.0}] * 2)
        self.assertEqual(told[-1], {"work": "decode 4 × 3", "error": "MemoryError: no room"})
        self.assertEqual(len(told), 6)


class Processes(unittest.TestCase):
    def run_code(self, code, limit=20):
        told, why = peers.run_worker([sys.executable, "-c", code], limit)
        return peers.with_reason(told, PLAN, why)

    def test_crash_keeps_what_was_told(self):
        line = json.dumps({"work": "prefill 8", "tokens_per_second": 5})
        code = f"import os,signal; print('''{line}''', flush=True); os.kill(os.getpid(), signal.SIGILL)"
        found = self.run_code(code)
        self.assertEqual(found.rates, {"prefill 8": [5]})
        self.assertEqual(found.errors["decode 4"], "ended by SIGILL")
        self.assertNotIn("prefill 8", found.errors)

    def test_stall_and_half_a_line(self):
        found = self.run_code("import time; print('{\"work\"', end='', flush=True); time.sleep(60)", limit=1)
        self.assertEqual(found.errors["prefill 8"], "not done after 1 s")

    def test_python_error(self):
        self.assertEqual(self.run_code("raise OSError('gone')").errors["prefill 2"], "OSError: gone")

    def test_puna(self):
        report = {"prefill_tps": 9.0, "decode_tps": 4.0, "batch_decode_tps": {"3": 7.0}, "load_ms": 1.0, "isa": "x",
                  "bandwidth_gbs": 10.0, "peak_bf16_tflops": 1.0, "peak_unit": "u", "decode_bandwidth_share": 0.5,
                  "prefill_peak_share": 0.25}
        found = Outcome()
        peers.add_puna_report(found, report, PLAN)
        peers.add_puna_report(found, report | {"prefill_tps": 2.0}, PLAN)
        expected = {"prefill 8": [9.0], "prefill 2": [2.0], "decode 4": [4.0], "decode 4 × 3": [7.0]}
        self.assertEqual(found.rates, expected)
        first, second = peers.puna_arguments(PLAN)
        self.assertEqual(first, "-p 8 -g 4 -r 2 --batch 3".split())
        self.assertEqual(second, "-p 2 -g 1 -r 2".split())

    def test_refusals(self):
        runner = Runner(pathlib.Path("p"), pathlib.Path("q"), 1, False, 1, {"openvino": "not here"})
        gguf, folder = Model("1b", "Q4_0"), Model("1b", "folder")
        self.assertIsNone(runner.refusal("puna", folder))
        self.assertIsNone(runner.refusal("llama.cpp", gguf))
        self.assertEqual(runner.refusal("llama.cpp", folder), "")
        self.assertEqual(runner.refusal("openvino", gguf), "not here")


class Files(unittest.TestCase):
    def test_models(self):
        self.assertEqual([model.name for model in files.chosen_models([], False)], list(files.DEFAULT_MODELS))
        self.assertIn("7b:Q4_0", [model.name for model in files.chosen_models([], True)])
        self.assertEqual(files.chosen_models(["7b:Q8_0"], True), [Model("7b", "Q8_0")])
        for names in (["7b:Q4_0"], ["2b:Q4_0"], ["1b"], ["1b:F64"], ["smollm2:Q4_0"]):
            with self.assertRaises(ValueError):
                files.chosen_models(names, False)

    def test_plan_of_seven(self):
        self.assertEqual(files.plan_for(Model("1b", "Q4_0"), PLAN), PLAN)
        self.assertEqual(files.plan_for(Model("7b", "Q4_0"), Plan()).works()[0], Work("prefill", 256))

    def test_lacking(self):
        model = Model("7b", "Q4_0")
        self.assertIn("of disk", files.lacking(model, model.n_bytes, 3 * 10**9, None))
        self.assertIn("of memory", files.lacking(model, 0, 0, 4 * 10**9))
        self.assertIsNone(files.lacking(model, model.n_bytes, 10**10, 10**10))

    def test_what_is_not_there(self):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(pathlib.Path(folder), pathlib.Path(sys.executable), None)
            with self.assertRaisesRegex(OSError, "puna pull smollm2"):
                store.make(Model("smollm2", ""))
            there = pathlib.Path(folder) / "1b-Q4_0.gguf"
            there.touch()
            self.assertEqual(store.make(Model("1b", "Q4_0")), there)


class Summary(unittest.TestCase):
    def test_numbers(self):
        outcomes = [outcome(a=[1.0, 9.0, 2.0]), Outcome(), outcome(a=[4.0, 6.0])]
        found = summary.number(outcomes, "a")
        self.assertEqual((found.median, found.least, found.most, found.rounds), (3.5, 2.0, 5.0, (2.0, None, 5.0)))
        self.assertIsNone(summary.number(outcomes, "b"))

    def test_ratio_is_of_the_same_round(self):
        puna = summary.number([outcome(a=[10.0]), outcome(a=[2.0]), outcome(a=[9.0])], "a")
        peer = summary.number([outcome(a=[5.0]), outcome(a=[1.0]), Outcome()], "a")
        self.assertEqual(summary.ratio(puna, peer), 2.0)
        self.assertIsNone(summary.ratio(puna, None))
        alone = summary.number([Outcome(), Outcome(), outcome(a=[3.0])], "a")
        self.assertIsNone(summary.ratio(peer, alone))

    def test_failures(self):
        outcomes = [Outcome(errors={"a": "x", "b": "x"}), Outcome(errors={"a": "x", "c": "y"})]
        self.assertEqual(summary.failures(outcomes), ["a, b: x", "c: y"])


class Record(unittest.TestCase):
    def made(self):
        outcomes = {
            "puna": [outcome(decode_4=[150.0]), outcome(decode_4=[170.0])],
            "llama.cpp": [outcome(decode_4=[50.0]), outcome(decode_4=[80.0])],
            "openvino": [Outcome(errors={"decode 4": "no"}, others=0.5)],
            "transformers": [],
        }
        return record.model_record(Model("smollm2", ""), PLAN, outcomes)

    def test_model_record(self):
        made = self.made()
        work = made["works"]["decode 4"]
        self.assertEqual(work["ratios"], {"llama.cpp": (150 / 50 + 170 / 80) / 2})
        self.assertEqual(work["tokens_per_second"]["puna"]["rounds"], (150.0, 170.0))
        self.assertEqual(made["failures"], {"openvino": ["decode 4: no"]})

    def test_table(self):
        told = {"peers_in_order": ["llama.cpp", "transformers"], "models": [self.made()]}
        head, *body = table.rows(told)
        self.assertEqual(head, ["model", "work", "puna", "llama.cpp", "puna / it", "transformers", "puna / it"])
        self.assertEqual(body[2], ["smollm2", "decode 4", "160 (150–170)", "65.0 (50.0–80.0)", "2.56", "-", "-"])
        lines = table.plain(table.rows(told)).splitlines()
        self.assertEqual(len(lines), 5)
        self.assertTrue(lines[3].startswith("smollm2  decode 4 "))
        self.assertIn("| smollm2 | decode 4 | 160 (150–170) |", table.markdown_table(table.rows(told)))

    def test_notes(self):
        lines = list(table.model_lines(self.made()))
        self.assertIn("50% beside openvino", lines[0])
        self.assertEqual(lines[1], ", openvino: decode 4: no")

    def test_scrub(self):
        home = "/ho" + "me/somebody/models"
        self.assertEqual(record.scrub(f"open {home}/a.gguf: no", "x1"), "open a.gguf: no")
        self.assertEqual(record.scrub(f"--puna={home}/puna ~/b.gguf", "x1"), "--puna=puna b.gguf")
        self.assertEqual(record.scrub("index https://example.org/simple/ on box7", "box7"), "index (address) on (machine)")
        self.assertEqual(record.scrub("pool(host='example.org', port=443)", "x1"), "pool((address), port=443)")
        self.assertEqual(record.scrub("30 tokens/s, and/or 1 / 2", "x1"), "30 tokens/s, and/or 1 / 2")
        told = record.scrubbed({"a": [f"{home}/b", 1, None], "c": {"d": ("e",)}})
        self.assertEqual(told, {"a": ["b", 1, None], "c": {"d": ["e"]}})

    def test_stem(self):
        name = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
        self.assertEqual(record.stem("2026-01-02", name, False, []), "2026-01-02-intel-xeon-platinum-8481c")
        taken = ["2026-01-02-amd-epyc-avx2", "2026-01-02-amd-epyc-avx2-2"]
        self.assertEqual(record.stem("2026-01-02", "AMD EPYC", True, taken), "2026-01-02-amd-epyc-avx2-3")


class Command(unittest.TestCase):
    def test_arguments(self):
        args = main.arguments(["--batch", "2,8", "--models", "1b:Q4_0", "-p", "64"])
        self.assertEqual((args.batch, args.models, args.prompt), ((2, 8), ["1b:Q4_0"], 64))
        self.assertEqual(main.chosen_peers(args), list(peers.WORKERS))
        self.assertEqual(main.chosen_peers(main.arguments(["--avx2"])), ["llama.cpp"])
        for wrong in (["--peers", "vllm"], ["--avx2", "--peers", "openvino"]):
            with self.assertRaises(ValueError):
                main.chosen_peers(main.arguments(wrong))

    def test_turns(self):
        order = ["a", "b", "c"]
        self.assertEqual([rounds.turn(order, index)[0] for index in range(4)], ["a", "b", "c", "a"])
        self.assertEqual(sorted(rounds.turn(order, 2)), order)


if __name__ == "__main__":
    unittest.main()
