"""What Jinja2 makes of expressions that chat templates use: Python's methods, `%`, filters, printing.

    python tools/chat_goldens.py > crates/puna/tests/data/chat_goldens.json

Each expression is rendered in the environment that Transformers gives chat templates. `text` is null where Jinja2 refuses.
"""

import json

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MESSAGES = [{"role": "user", "content": " Hi "}]
VARIABLES = {"name": "Zed", "items": [1, "b", 2.5]}
EXPRESSIONS = r"""
'abcabc'.index('c') ~ 'abcabc'.index('c', 3) ~ 'añb'.index('b') ~ 'abc'.index('', -2)
'abcabc'.rindex('c') ~ 'abcabc'.rindex('a', 0, 3)
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=') ~ 'abc'.rpartition('=')
'a=b=c'.partition('=')[2]
'a,b,c'.rsplit(',', 1)
'a,b,c'.rsplit(',')
'a,b,c'.rsplit(',', maxsplit=0)
'  a b  c '.rsplit(None, 1)
'  a b  c '.rsplit()
'   '.rsplit()
'a,b,c'.rsplit(sep=',', maxsplit=1)
'-42'.zfill(5) ~ '42'.zfill(5) ~ '+'.zfill(3) ~ 'abcdef'.zfill(3) ~ ''.zfill(2)
'unhappy'.removeprefix('un') ~ 'happy'.removeprefix('un') ~ 'a.b.b'.removesuffix('.b') ~ 'x'.removesuffix('')
'ab'.ljust(4) ~ '|' ~ 'ab'.rjust(4, '*') ~ '|' ~ 'ab'.center(5, '-') ~ '|' ~ 'abc'.center(6, '-') ~ '|' ~ 'abc'.ljust(2)
'aBc ñÉ ß'.swapcase()
'Straße ΣΟΦΟΣ İ ŉ ſ µ'.casefold()
[1, 2.0, 'x', 2].index(2) ~ ['a', 'b', 'a'].index('a', 1) ~ ['a', 'b'].index('b', -1)
'%s' % 'x'
'%s and %s' % ('a', 3)
'%d items, %5.2f, %x, %05d|%-5s|%5s|' % (7, 3.14159, 255, 42, 'ab', 'cd')
'%(name)s is %(age)d' % {'name': 'Bo', 'age': 3}
'%s' % [1, 2]
'%d%%' % 5
'%s' % ('a' ~ 'b')|upper
'%s' % name.upper() ~ '!'
'%s-%s' % (name, items[0]) if name else ''
7 % 3 ~ -7 % 3 ~ 7.5 % 2
'%r' % 'x'
'%s' % 1.5
'%s' % true
'%s' % none
1e16
1e15
1e-5
0.0001
123456789.125
[1e16, {'a': 1e-7, 'b': [0.5, none, true]}, 'it\'s', "q\"", 'a\nb', (1,), (1, 'b'), ()]
{'k': 1.0, 2: 'x'}
1e16|string
[1e300]|string
'x'|string
3.0
-0.0
1e16|int
'Hello world, this is a long text'|truncate(12)
'Hello world, this is a long text'|truncate(12, true)
'Hello world, this is a long text'|truncate(12, end='~', leeway=0)
'Hello world, this is'|truncate(15)
'short'|truncate
'Helloworldthisisalongtext'|truncate(length=9, leeway=0)
'ab'|center(7) ~ '|'
('ab'|center)|length
'one two, three_4 — fünf'|wordcount
'a b/c?d=é&~'|urlencode
{'a b': 'c/d', 'e': 1}|urlencode
[('a', 'b c'), ('x', 2.5)]|urlencode
5|urlencode
''|wordcount
items|join(',')
name
items
'abc'[::-1]
"it's" ~ ["it's", 'a"b\'c', 'é', '\x01']
'{:>5}|{:.2f}'.format('a', 1.5)
'{}'.format(1e16)
'%.3s|%c|%e|%g|%i|%o|%X' % ('abcdef', 'z', 12345.678, 0.0001, 3, 8, 255)
'%+d % d %#x' % (5, 5, 255)
'a%sb' % 'X' ~ 'c%sd' % 'Y'
'%s' % (1, 2)|length
'%s' % {'a': 1}
'%s %s' % ('%s' % 'in', 'out')
-'%d' % 3 if false else 'ok'
'%5s' % name|upper
'abc'.index('z') if false else 'none'
[1,[2,(3,)]]|string|upper
'a'.join(['x','y'])
'x' in 'xyz'
none
true
[none]
'ab cd'.title().swapcase()
'%s' % messages[0]['role']
'%s' % (messages | length)
'%s' % messages | length
'%s' % -3
'%s' % messages[0].role.upper()
'%s' % [name]
'%s and %%' % name
'%s' % name == 'Zed'
("%s" % name) ~ 1
'a|b'.partition('|')|join('-')
'%s' % not_there
'%s' % 1e16
'%s' % [1e16]
'%s' % none|default('x')
'%s' % (name if items else 'b')
'%s' % items|length + 1 if false else 'c'
'%s' % name is string
'%s' % 3 in ['3']
'%s' % (1e16,)
'abc'.index('z')
'abc'.index('', 4)
[1].index(2)
'a'.partition('')
'a'.rsplit('')
'a'.ljust(3, 'xy')
'abc'|truncate(2)
'%d' % 'x'
"""


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    cases = []
    for expression in EXPRESSIONS.strip("\n").split("\n"):
        template = "{{ " + expression + " }}"
        try:
            text = environment.from_string(template).render(messages=MESSAGES, **VARIABLES)
        except Exception:
            text = None
        cases.append({"template": template, "text": text})
    about = {"jinja2": jinja2.__version__, "made_by": "tools/chat_goldens.py"}
    print(json.dumps({"about": about, "variables": VARIABLES, "cases": cases}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
