"""The checks must be able to fail: each rule on a sample that breaks it and one that does not."""

import hashlib
import json
import pathlib
import unittest

import check_licences
import check_tree
import readme_commands
from mixed_text import SplitMix64, mixed_text

DATA = pathlib.Path(__file__).resolve().parent.parent / "crates/puna/tests/data/smollm2"


class CheckTree(unittest.TestCase):
    def errors(self, name, text):
        return check_tree.check(name, text.encode())[0]

    def notes(self, name, text):
        return check_tree.check(name, text.encode())[1]

    def test_words(self):
        self.assertIn("say n_heads", self.errors("a.rs", "let n_head = 4;\n")[0])
        self.assertEqual(self.errors("a.rs", 'let n_heads = file.get("llama.n_head"); // `n_head`\n'), [])
        self.assertEqual(self.errors("checkpoint/names.rs", "let wte = 1;\n"), [])
        self.assertEqual(self.errors("notes.md", "their n_head\n"), [])

    def test_paths_and_hosts(self):
        machine = "/ho" + "me/somebody/model"
        self.assertEqual(len(self.errors("a.md", f"see {machine}\n")), 1)
        self.assertEqual(self.errors("a.md", "a net" + "/wo" + "rk/shop and https://example.org/ho" + "me/\n"), [])
        host = "py" + "pi.org"
        self.assertEqual(len(self.errors("a.toml", f'index = "https://{host}/simple"\n')), 1)
        self.assertEqual(self.errors("Cargo.lock", f'source = "{host}"\n'), [])

    def test_sizes(self):
        code = "let x = f();\n"
        tests = "#[cfg(test)]\nmod tests {\n" + code * 900 + "}\n"
        self.assertEqual(self.errors("a.rs", code * 400 + tests), [])
        self.assertEqual(self.notes("a.rs", code * 400 + tests), [])
        self.assertIn("the aim is 500", self.notes("a.rs", code * 501)[0])
        self.assertIn("at most 800", self.errors("a.rs", code * 801)[0])
        self.assertEqual(self.errors("crates/puna/tests/a.rs", code * 801), [])
        self.assertEqual(self.errors("a.rs", "    0x12, 0x34, 56,\n" * 2000), [])

    def test_long_functions(self):
        body = "    g();\n"
        self.assertIn("fn f has 61 lines", self.notes("a.rs", "pub fn f() {\n" + body * 59 + "}\n")[0])
        self.assertEqual(self.notes("a.rs", "fn f() {\n" + body * 58 + "}\n"), [])
        declared = "trait T {\n    fn f(\n        x: u8,\n    ) -> u8;\n" + "    // c\n" * 70 + "    fn g() {\n    }\n}\n"
        self.assertEqual(self.notes("a.rs", declared), [])


class CheckLicences(unittest.TestCase):
    def test_expressions(self):
        allow = {"MIT", "Unicode-3.0"}
        for text, expected in [
            ("MIT", True), ("GPL-3.0", False), ("GPL-3.0 OR MIT", True), ("GPL-3.0 AND MIT", False),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", True), ("MIT/Apache-2.0", True),
            ("Apache-2.0 WITH LLVM-exception OR MIT", True), ("Apache-2.0 WITH LLVM-exception", False),
            ("GPL-3.0 AND MIT OR MIT", True),
        ]:
            self.assertEqual(check_licences.allowed(text, allow), expected, text)
        for text in ("MIT OR", "(MIT", "MIT MIT"):
            with self.assertRaises(ValueError):
                check_licences.allowed(text, allow)


class Readme(unittest.TestCase):
    def test_blocks(self):
        text = "a\n```sh run\none\ntwo\n```\n```sh\nnot this\n```\n```sh run\nthree\n```\n"
        self.assertEqual(readme_commands.blocks(text), [(2, "one\ntwo"), (9, "three")])
        with self.assertRaises(ValueError):
            readme_commands.blocks("```sh run\nopen\n")


class MixedText(unittest.TestCase):
    def test_generator(self):
        # First outputs of the published generator for seed 0.
        rng = SplitMix64(0)
        self.assertEqual([rng.next() for _ in range(2)], [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4])

    def test_text_is_the_goldens(self):
        text = mixed_text(json.loads((DATA / "mixed_text.json").read_text(encoding="utf-8"))).encode()
        golden = json.loads((DATA / "tokenization.json").read_text(encoding="utf-8"))
        self.assertEqual(hashlib.sha256(text).hexdigest(), golden["text_sha256"])


if __name__ == "__main__":
    unittest.main()
