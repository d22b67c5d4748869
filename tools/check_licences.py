"""Every dependency's licence expression must be met by deny.toml's allow-list alone.

Reads `cargo metadata` (names and SPDX expressions; AND binds tighter than OR, "/" is an old OR) and deny.toml.
Needs no network once cargo has fetched the crates. `cargo deny` says more where it is installed.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def allowed(expression, allow):
    """Whether `expression` can be met with licences of `allow` only."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def parse_or():
        value = parse_and()
        while words and words[0] == "OR":
            words.pop(0)
            right = parse_and()
            value = value or right
        return value

    def parse_and():
        value = parse_one()
        while words and words[0] == "AND":
            words.pop(0)
            right = parse_one()
            value = value and right
        return value

    def parse_one():
        if not words:
            raise ValueError(f"licence expression ends too early: {expression!r}")
        word = words.pop(0)
        if word == "(":
            value = parse_or()
            if not words or words.pop(0) != ")":
                raise ValueError(f"unbalanced parentheses: {expression!r}")
            return value
        value = word in allow
        if words and words[0] == "WITH":  # an exception only adds permissions
            del words[:2]
        return value

    value = parse_or()
    if words:
        raise ValueError(f"cannot read licence expression {expression!r}")
    return value


def packages(manifest):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--manifest-path", str(manifest)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["packages"]


def main():
    allow = set(tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))["licenses"]["allow"])
    seen, refused = set(), []
    for manifest in (ROOT / "Cargo.toml", ROOT / "fuzz/Cargo.toml"):
        for package in packages(manifest):
            key = (package["name"], package["version"])
            if key in seen:
                continue
            seen.add(key)
            licence = package["license"]
            if not licence or not allowed(licence, allow):
                refused.append(f"{key[0]} {key[1]}: {licence or 'no licence given'}")
    for line in refused:
        print(f"not allowed by deny.toml: {line}")
    print(f"{len(seen)} packages, {len(refused)} with a licence that deny.toml does not allow")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
