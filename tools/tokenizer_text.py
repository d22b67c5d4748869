"""Text of our own making to compare tokenizers on: prose, code, numbers, scripts, emoji, spaces.

Seeded, so that every run gives the same text. `mixed(size, seed)` returns about `size` bytes.
"""

import random

PROSE = [
    "The puna is a high plain where the wind never rests.",
    "A llama carries what it wants to carry, and sits down under the rest.",
    "She said: \"We'll see; it's not as if they'd've known, y'all!\"",
    "Don't you think I'm right? You're sure he'd say we've won, isn't it?",
    "In 1998 the herd had 1,204 animals (37.5 % more than in 1997).",
    "Mail: someone@example.org, see https://example.org/a?b=c&d=%20#e",
    "Naïve café owners déjà vu: Ångström, Łódź, Çeşme, Größe, œuvre, ſpecial.",
    "El niño comió piñas; ¿quién no? ¡Nadie!",
    "Der Fluß fließt über große Kieselsteine, schön und kühl.",
    "Эта река течёт быстро, и вода в ней холодная.",
    "Το ποτάμι τρέχει γρήγορα και το νερό είναι κρύο.",
    "河水很冷，羊群慢慢地走过高原。今天是2024年5月17日。",
    "高原の風は冷たい。ラマは荷物を運ぶのが好きではありません。",
    "고원의 바람은 차갑고 라마는 천천히 걷는다.",
    "الريح باردة على الهضبة، والقطيع يمشي ببطء ١٢٣٤٥.",
    "הרוח קרה ברמה הגבוהה והעדר הולך לאט.",
    "पठार पर हवा ठंडी है और झुंड धीरे चलता है १२३।",
    "ที่ราบสูงลมเย็นและฝูงสัตว์เดินช้า ๆ",
    "Gió trên cao nguyên lạnh, đàn lạc đà đi chậm rãi.",
    "🦙🦙 up the hill ⛰️ — 👨‍👩‍👧‍👦 and 🇵🇪, 👍🏽 ok ✅!!! :-) ¯\\_(ツ)_/¯",
    "x² + y² = z², ∑ᵢ aᵢ ≤ ∫₀^∞ e^{-t} dt, ½ + ⅓ = ⅚, Ⅷ + ⅳ = Ⅻ",
    "e\u0301 is é, o\u0308 is ö, and \u200b\u200d\ufeff\u00ad are hard to see.",
]

CODE = [
    "def step(state, n=3):\n    for i in range(n):\n        state[i] += 0x{h:x}  # {d}\n    return state\n",
    "fn main() {{\n\tlet x: Vec<u32> = (0..{d}).collect();\n\tprintln!(\"{{:?}}\", &x[..{s}]);\n}}\n",
    "if (a_{d} != NULL && b->c[{s}] >= {f}) {{ goto end; }} /* {h:08x} */\r\n",
    "SELECT id, name FROM herd WHERE age > {s} AND weight <= {f};\n\n\n",
    "{{\"id\": {d}, \"ok\": true, \"x\": [{f}, -{s}e-{s}, null], \"s\": \"\\u00e9\\n\"}}\n",
    "<div class='a-{s}'>&nbsp;<b>{d}</b></div><!-- {h} -->\n",
    "$ cat /etc/x_{d}.conf | grep -vE '^#|^$' | awk '{{print ${s}}}'\n",
    "\\begin{{align}} \\frac{{{s}}}{{{d}}} &= {f} \\\\ \\end{{align}}\n",
]

SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t ", " \n", "    ", "\u00a0", "\u3000", " " * 9]


def line(rng):
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(PROSE)
    if kind < 0.75:
        values = {"d": rng.randrange(10**7), "s": rng.randrange(9), "h": rng.randrange(2**40)}
        return rng.choice(CODE).format(f=round(rng.random() * 1000, 4), **values)
    if kind < 0.85:
        words = [word for text in rng.sample(PROSE, 3) for word in text.split(" ")]
        rng.shuffle(words)
        return "".join(word + rng.choice(SPACES) for word in words)
    if kind < 0.93:
        points = [rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x2FFF), rng.randrange(0x3000, 0xD7FF), rng.randrange(0x1F300, 0x1FAFF)]) for _ in range(30)]
        return "".join(map(chr, points))
    return "".join(rng.choice("0123456789,. '-+_()[]{}<>|\\/\"`~!@#$%^&*?:;=\n\t ") for _ in range(60))


def mixed(size, seed):
    rng = random.Random(seed)
    parts, length = [], 0
    while length < size:
        part = line(rng) + rng.choice(SPACES)
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)
