"""Seeded mixed text for tokenizer goldens: fragments and random characters from mixed_text.json.

The rule is small enough to be written again in Rust (crates/puna/tests): splitmix64 gives the numbers,
`r = next % 16` picks a fragment (0..=11), a short run from a range of characters (12..=14) or one
character repeated (15). It stops once the UTF-8 length has reached `bytes`.
"""

import json
import sys

MASK = (1 << 64) - 1


class SplitMix64:
    """The generator of Steele, Lea and Flood (2014): one addition and three mixing steps a number."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n


def mixed_text(spec):
    """The text that `spec` (the parsed mixed_text.json) describes."""
    rng = SplitMix64(spec["seed"])
    fragments = spec["fragments"]
    ranges = [(int(lo, 16), int(hi, 16)) for lo, hi in spec["ranges"]]
    pieces, size = [], 0
    while size < spec["bytes"]:
        kind = rng.below(16)
        if kind < 12:
            piece = fragments[rng.below(len(fragments))]
        else:
            lo, hi = ranges[rng.below(len(ranges))]
            if kind < 15:
                length = 1 + rng.below(8)
                piece = "".join(chr(lo + rng.below(hi - lo + 1)) for _ in range(length))
            else:
                length = 1 + rng.below(200)
                piece = chr(lo + rng.below(hi - lo + 1)) * length
        pieces.append(piece)
        size += len(piece.encode("utf-8"))
    return "".join(pieces)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.stdout.buffer.write(mixed_text(json.load(file)).encode("utf-8"))
