#!/usr/bin/env python3
"""Writes jinja.jsonl: templates, variables and what Python's jinja2 makes of them.

The environment is that of Hugging Face transformers (utils/chat_template_utils.py): immutable
sandbox, trim_blocks, lstrip_blocks, loop controls, its own tojson, raise_exception.
Made with jinja2 3.1.6. Run: python make_golden.py > jinja.jsonl
A row has "rendered", or "error" with the text of the exception (for the reader; not compared).
"""
import json
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


class Generation(jinja2.ext.Extension):
    """`generation` blocks: their text, as transformers' AssistantTracker gives it."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


VARIABLES = {
    "name": "World", "empty": "", "n": 5, "neg": -3, "f": 2.5, "big": 1e20, "small": 1.5e-7,
    "yes": True, "no": False, "nothing": None,
    "text": "  The quick brown fox\njumps over\n\nthe lazy dog  ",
    "unicode": "Grüße, 世界! 🙂 Ωμέγα Привет",
    "think": "<think>a</think>b</think>c",
    "quotes": "it's \"quoted\" \\ back\tslash & <b>",
    "nums": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4]]], "none_list": [],
    "floats": [1.0, 0.1, 1e16, 123456789.125, -0.0, 1e-5, 100.0],
    "obj": {"b": 1, "a": {"c": [True, None, 1.5]}, "items": "shadow", "k": "v"},
    "users": [{"name": "Ann", "age": 31, "tags": ["x", "y"], "active": True},
              {"name": "bob", "age": 25, "tags": [], "active": False},
              {"name": "Cy", "age": 31, "active": True}],
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                 {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "Does \"it\" — ünï",
               "parameters": {"type": "object", "properties": {"x": {"type": "integer"}},
                              "required": ["x"]}}}],
}

# Expressions, each rendered as {{ expression }}.
EXPRESSIONS = r"""
name
'a' 'b' "c"
1
-1
- 1
+n
1_000
0x1F
0o17
0b101
1.5
1e3
1.5e-3
2E+2
true
True
false
none
None
[1, 'a', none, true, 1.5]
(1, 2)
(1,)
()
1, 2
{'a': 1, "b": [2], 3: none}
{}
[]
[1, 2,]
{'a': 1,}
1 + 2 * 3
(1 + 2) * 3
7 / 2
6 / 3
7 // 2
-7 // 2
7 // -2
7 % 3
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
7.5 // 2
-7.5 // 2
2 ** 10
2 ** -1
2 ** 0.5
2 ** 3 ** 2
-2 ** 2
1 / 0
1 // 0
1 % 0
1.0 / 0
10 ** 18
'a' + 'b'
'a' + 1
1 + 'a'
'ab' * 3
3 * 'ab'
'ab' * -1
[1] + [2]
[1, 2] * 2
(1,) + (2,)
[1] + (2,)
'a' ~ 1 ~ none ~ 1.5 ~ true
1 ~ 2 + 3
'%s is %d' % ('x', 3)
'%s' % 'y'
'%s' % nums
'%s %s' % ('x',)
'100%%' % ()
1 < 2
1 < 2 < 3
1 < 3 < 2
3 > 2 > 1
1 == 1.0
1 == true
'1' == 1
none == none
none == false
[1, 2] == [1, 2]
[1] == (1,)
{'a': 1} == {'a': 1}
'a' < 'b'
'B' < 'a'
[1, 2] < [1, 3]
1 < 'a'
none < 1
1 != 2
1 <= 1
2 >= 3
1 in [1, 2]
4 not in nums
'wor' in 'sword'
'b' in obj
'z' in obj
1 in 'abc'
not true
not none
not 1 == 2
not not ''
true and false
1 and 2
0 and 2
0 or 'x'
'' or none
1 or raise_exception('no')
1 if true else 2
1 if false else 2
1 if false
(1 if false) is defined
'a' if n > 3 else 'b' if n > 1 else 'c'
undefined_thing
undefined_thing.x
undefined_thing['x']
undefined_thing + 1
undefined_thing ~ 'x'
undefined_thing or 'default'
undefined_thing == other_undefined
undefined_thing == none
undefined_thing()
undefined_thing | length
undefined_thing | list
undefined_thing | join(',')
undefined_thing | upper
undefined_thing | default('d')
undefined_thing | tojson
undefined_thing | int
undefined_thing < 1
-undefined_thing
'x' in undefined_thing
obj.b
obj['b']
obj.a.c
obj.a.c[0]
obj.a['c'][-1]
obj.missing
obj.missing.deeper
obj['missing']
obj['items']
obj.k
nums[0]
nums[-1]
nums[10]
nums['x']
nums.0
name[0]
name[-1]
name[10]
unicode[6]
unicode[7:10]
unicode[::-1]
nums[1:]
nums[:1]
nums[:-1]
nums[::2]
nums[::-1]
nums[-2:]
nums[5:]
nums[1:1]
name[1:3]
name[-3:]
name[:100]
name[::2]
name[3:1:-1]
nums[::0]
(1, 2, 3)[1:]
none.x
none['x']
nothing is none
nothing is not none
n is defined
undefined_thing is defined
undefined_thing is not defined
undefined_thing is undefined
obj.missing is defined
obj.a is mapping
nums is mapping
nums is sequence
name is sequence
obj is sequence
n is sequence
nums is iterable
name is iterable
n is iterable
obj is iterable
name is string
n is string
n is number
f is number
yes is number
n is integer
yes is integer
f is integer
f is float
n is float
yes is boolean
n is boolean
yes is true
1 is true
no is false
0 is false
n is odd
n is even
n is divisibleby 5
n is divisibleby(2)
n is eq 5
n is equalto 5
n is ne 5
n is lt 6
n is gt 6
n is ge 5
n is le 4
n == 5 and name is string
n is in nums
3 is in nums
'abc' is lower
'ABC' is upper
range is callable
name is callable
none is sameas none
1 is sameas 1
not n is defined
n is not odd
n is odd and yes
n is odd or no
name | upper
name | lower
unicode | upper
unicode | lower
'hello WORLD' | capitalize
'hello wORLD foo-bar (baz' | title
text | trim
'xxaxx' | trim('x')
'  a ' | trim | length
name | length
unicode | length
obj | length
nums | count
n | length
none | length
text | replace('o', '0')
'aaa' | replace('a', 'b', 2)
'abc' | replace('', '-')
nums | join
nums | join(', ')
users | join(', ', attribute='name')
none_list | join(',')
'abc' | join('-')
nums | first
nums | last
none_list | first
'abc' | first
'abc' | last
nums | sort
words | sort
words | sort(case_sensitive=true)
nums | sort(reverse=true)
users | sort(attribute='name') | map(attribute='name') | list
users | sort(attribute='age,name') is defined
nums | reverse | list
'abc' | reverse
nums | sum
floats | sum | round(3)
users | sum(attribute='age')
nums | max
nums | min
words | max
words | min
none_list | max
[1, 1.0, 2, 1] | unique | list
['a', 'A', 'b'] | unique | list
'abca' | list
obj | list
n | string
f | string
nums | string
none | string
'12' | int
' 12 ' | int
'12.7' | int
'x' | int
'x' | int(7)
'ff' | int(0, 16)
'0xff' | int(base=16)
12.9 | int
-12.9 | int
none | int
true | int
'1e3' | int
'1.5' | float
'x' | float
'x' | float(2.5)
3 | float
-3 | abs
-3.5 | abs
2.5 | round
3.5 | round
2.567 | round(2)
2.5 | round(0, 'ceil')
2.5 | round(0, 'floor')
2.123 | round(1, 'ceil')
42 | round
-2.5 | round
1234.5 | round(-2)
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, blank=true)
'a\nb' | indent('>>')
'a\n' | indent
'<a> & "b"' | e
"it's" | escape
'<a>' | safe
undefined_thing | d
undefined_thing | d('x')
'' | default('x')
'' | default('x', true)
none | default('x')
none | default('x', boolean=true)
0 | d('x', true)
users | map(attribute='name') | join(' ')
users | map(attribute='tags') | list
users | map(attribute='tags', default='none') | list
users | map(attribute='tags.0') | list | length
words | map('upper') | join
nums | map('string') | join('+')
['a-b', 'c'] | map('replace', '-', '+') | list
users | selectattr('active') | map(attribute='name') | list
users | rejectattr('active') | map(attribute='name') | list
users | selectattr('age', 'equalto', 31) | list | length
users | selectattr('age', '>', 30) | list | length
users | selectattr('tags', 'defined') | list | length
users | rejectattr('tags', 'defined') | list | length
users | selectattr('name', 'in', ['Ann', 'Cy']) | map(attribute='age') | list
nums | select('odd') | list
nums | reject('odd') | list
nums | select('gt', 1) | list
[0, 1, '', 'a', none] | select | list
[0, 1, '', 'a', none] | reject | list
nums | select('nonsense') | list
obj.a | items | list
obj | items | list | length
obj | dictsort | map('first') | list
{'b': 1, 'A': 2, 'c': 0} | dictsort
{'b': 1, 'A': 2, 'c': 0} | dictsort(true)
{'b': 1, 'A': 2, 'c': 0} | dictsort(by='value')
{'b': 1, 'A': 2, 'c': 0} | dictsort(reverse=true)
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3] | batch(2, 0) | list
'%s-%s' | format('a', 1)
tools | tojson
tools | tojson(indent=2)
tools[0].function | tojson(indent=4)
obj | tojson
obj | tojson(sort_keys=true)
obj | tojson(separators=(',', ':'))
unicode | tojson
unicode | tojson(ensure_ascii=true)
quotes | tojson
floats | tojson
[none, true, false, 1, 1.0, 'x', [], {}] | tojson
[[], {}, [1]] | tojson(indent=2)
'\x01\x1f\x7f' | tojson
big | tojson
{1: 2, none: 3, true: 4} | tojson
text.strip()
'xxaxyx'.strip('x')
'xyaxy'.strip('yx')
'  a '.lstrip()
'  a '.rstrip()
'\n\na\n'.lstrip('\n')
think.split('</think>')
think.split('</think>')[-1]
think.split('</think>', 1)[1]
think.rsplit('</think>', 1)[0]
think.split('</think>')[0].split('<think>')[-1]
' a  b c '.split()
' a  b c '.split(none, 1)
'a,b,,c'.split(',')
''.split(',')
''.split()
'a'.split('')
'a\nb\r\nc\n'.splitlines()
'a\nb\n'.splitlines(true)
name.startswith('Wor')
name.startswith(('x', 'W'))
name.endswith('ld')
name.upper()
name.lower()
'they are bill\'s'.title()
'hello WORLD'.capitalize()
'a-b'.replace('-', '+')
'aaa'.replace('a', 'b', 1)
', '.join(words)
', '.join(nums)
'{} and {}'.format('a', 1)
'{1} {0} {x}'.format('a', 'b', x='c')
'{{}} {}'.format(1)
'abc'.find('c')
'abc'.find('z')
unicode.find('!')
'abcb'.rfind('b')
'abc'.index('z')
'banana'.count('an')
'12'.isdigit()
''.isdigit()
' '.isspace()
'prefix-x'.removeprefix('prefix-')
'x.py'.removesuffix('.py')
name.nonsense()
name.nonsense
n.nonsense()
obj.a.items() | list
obj.a.keys() | list
obj.a.values() | list
obj.get('b')
obj.get('zz')
obj.get('zz', 'd')
obj.get('zz', none)
nums.append(4)
nums.index(1)
nums.count(1)
nums.pop()
obj.update({'a': 1})
range(3) | list
range(1, 4) | list
range(10, 0, -3) | list
range(0) | list
range(1, 2, 0) | list
range(1000000) | list
dict(a=1, b=2)
dict({'x': 1}, y=2)
namespace(a=1).a
namespace(a=1).b
raise_exception('message')
floats
big
small
1e15
1e16
123456789012345678
0.1 + 0.2
1.0
-0.0
1e-4
1e-5
nested
quotes
[quotes]
['a\nb', "it's", 'say "hi"', 'both \' and "', 'ünï', '\x00\x7f', '\u200b', '🙂']
'\n\t\\\'\"'
'\x41\u00e9\U0001F642'
'\q'
'\101'
messages[0].role
messages[-1]['content']
messages | length
messages | map(attribute='role') | unique | join(',')
messages[1:] | map(attribute='content') | list
(messages | last).content
(messages | selectattr('role', 'equalto', 'user') | list)[-1].content
messages[0]['content'] | trim + '!'
n|string + 'x'
-n | abs
- n | abs
(n, name)[1]
[n, name][0] + 1
{'a': {'b': 1}}.a.b
{'a': 1}['a']
'a' in ['a'] and 'b' not in ['a']
n > 3 and n < 10 or false
not (n > 3)
1 if n is defined and n else 2
n is defined and n is not none
'x' is string and 'y' or 'z'
nums|length > 2
nums | length == 3
loop
loop is defined
(name)
((name))
name | upper | lower | title
name|replace("o","0")|upper
[1,2,3]|map('float')|list
'a' == 'a' == 'a'
1 + true
true + true
yes * 3
3 | string ~ 4
none ~ ''
[none] | join
[1, [2, 3]] | string
nums is sequence and nums is not string
nums is not mapping
{'x': [1]} | string
"a" "b" | upper
1 | nonsense
1 is nonsense
1 +
(1
'abc
{{}}
[1
foo(
a b
1 2
""".strip("\n").split("\n")

TEMPLATES = [
    "", "plain", "a\n", "a\n\n", "\n", "{{ name }}\n", "a\r\nb\rc\n",
    "{# comment #}x", "a {#- c -#} b", "a\n{# c #}\nb", "a\n  {# c #}\nb", "a\n  {#- c #}\nb", "x {# a\nb #} y",
    "{% if yes %}\na\n{% endif %}\nb", "  {% if yes %}\n  a\n  {% endif %}\n  b",
    "x  {% if yes %}a{% endif %}  y", "x\n  {%+ if yes %}a{% endif %}\n  y",
    "x\n  {%- if yes -%}\n  a\n  {%- endif -%}\n  y", "{% if yes +%}\na{% endif %}", "{% if yes -%}\n\n a{% endif %}",
    "{{- name -}}", "  {{- name -}}  x", "  {{ name }}  x", "{{ name -}}\n\n x", "{{ name }}\nx", "\n\n{{- name }}",
    "{%- set x = 1 -%}\n{{ x }}", "{% set x = 1 %}\n\n{{ x }}", "\t{% set x = 1 %}\t\n{{ x }}",
    "{% raw %}{{ a }}{% b %}{# c #}{% endraw %}", "a\n{% raw %}\n x {{\n{% endraw %}\nb", "a {%- raw -%} x {%- endraw -%} b",
    "{{ '{{' }} {{ '}}' }} {{ '%}' }}", "{{ {'a': {'b': 1}} }}", "{{ {} }}", "{ {% %", "{", "{ }", "}}", "%}", "#}", "{{ 1 }} }}",
    "{% if no %}a{% elif yes %}b{% else %}c{% endif %}", "{% if no %}a{% elif no %}b{% else %}c{% endif %}",
    "{% if undefined_thing %}a{% else %}b{% endif %}", "{% if nothing %}a{% endif %}x", "{% if none_list %}a{% else %}e{% endif %}",
    "{% for x in nums %}{{ x }},{% endfor %}", "{% for x in none_list %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in undefined_thing %}{{ x }}{% else %}none{% endfor %}", "{% for x in n %}{{ x }}{% endfor %}", "{% for x in nothing %}{{ x }}{% endfor %}",
    "{% for c in 'aé🙂' %}[{{ c }}]{% endfor %}", "{% for k in obj %}{{ k }} {% endfor %}",
    "{% for k, v in obj.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in obj.a | items %}{{ k }}={{ v }};{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }} {% endfor %}", "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}", "{% for (a, b) in [(1, 2)] %}{{ a + b }}{% endfor %}",
    "{% for x in nums %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.length }} {{ loop.first }} {{ loop.last }};{% endfor %}",
    "{% for x in nums %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in nums %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}",
    "{% for x in nums %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in nums %}{{ loop['index'] }}{% endfor %}",
    "{% for x in nums if x > 1 %}{{ loop.index }}:{{ x }} {% endfor %}", "{% for x in nums if x > 9 %}{{ x }}{% else %}e{% endfor %}",
    "{% for x in nums if x is odd %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "{% for x in nums %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in nums %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}done",
    "{% for x in nums %}{% for y in nums %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% for x in nums %}{% for y in words %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in nums %}{% set outer = loop %}{% for y in words %}{{ outer.index }}{% endfor %}{% endfor %}",
    "{% for x in nums %}{{ x }}{% endfor %}{{ x }}", "{% set x = 9 %}{% for x in nums %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 0 %}{% for y in nums %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}",
    "{% for y in nums %}{{ z }}{% set z = y %}{{ z }} {% endfor %}",
    "{% set ns = namespace(total=0) %}{% for y in nums %}{% set ns.total = ns.total + y %}{% endfor %}{{ ns.total }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}", "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(l=[]) %}{% for x in nums %}{% set ns.l = ns.l + [x * 2] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(a=1) %}{{ ns.a.b }}{{ ns['a'] }}", "{% set obj.x = 1 %}", "{% set undefined_thing.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set a, b = [1] %}", "{% set a = b = 1 %}",
    "{% set x %}block {{ name }}{% endset %}[{{ x }}]", "{% set x | upper %}block {{ name }}{% endset %}{{ x }}", "{% set x | replace('b', 'c') | upper %}bb{% endset %}{{ x }}",
    "{% if yes %}{% set x = 1 %}{% endif %}{{ x }}", "{% if no %}{% set x = 1 %}{% endif %}{{ x }}!",
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ add_generation_prompt }}",
    "{% macro m(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, 2) }} {{ m(b=3, a=4) }} {{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m() %}{{ name }}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}",
    "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "{% macro m() %} a {% endmacro %}[{{ m() }}][{{ m() | trim }}]", "{% macro m() %}{% set q = 1 %}{% endmacro %}{{ m() }}{{ q }}",
    "{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}", "{% for x in nums %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro m(l) %}{% for x in l %}{% if x is sequence %}{{ m(x) }}{% else %}{{ x }}{% endif %}{% endfor %}{% endmacro %}{{ m(nested) }}",
    "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in {{ name }}{% endcall %}",
    "{% macro wrap(n) %}{% for i in range(n) %}{{ caller(i) }};{% endfor %}{% endmacro %}{% call(i) wrap(3) %}{{ i * 2 }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{{ m is callable }}{{ m is defined }}", "{{ m() }}{% macro m() %}x{% endmacro %}",
    "{% filter upper %}a {{ name }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}aa{% endfilter %}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% generation %}{{ name }}{% endgeneration %}", "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}x{% endif %}",
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 1) %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}ok",
    "{%- for t in tools %}\n{{ t.function | tojson }}\n{%- endfor %}",
    "{%- for t in tools -%}\n  - {{ t.function.name }}: {{ t.function.description }}\n    {% for p, s in t.function.parameters.properties.items() %}\n    {{ p }}: {{ s.type }}\n    {% endfor %}\n{% endfor %}",
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ system }}|{{ rest | length }}",
    "{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}", "{% for i in range(messages | length - 1, -1, -1) %}{{ i }}{% endfor %}",
    "{% set found = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set found.last = loop.index0 %}{% endif %}{% endfor %}{{ found.last }}",
    "{{ raise_exception('bad ' ~ name) }}", "{% if raise_exception is defined %}y{% endif %}", "{% set _ = raise_exception('x') %}",
    "{% if yes %}", "{% endif %}", "{% for %}", "{% for x nums %}{% endfor %}", "{% nonsense %}", "{{ name", "{% if yes", "{# open", "{% raw %}x", "{% set %}", "{% macro %}", "{% if %}{% endif %}",
    "{% if yes %}a{% else %}b{% else %}c{% endif %}", "{% for x in nums %}{% endif %}", "{{ }}", "{% %}", "{% break %}", "{{ name | }}", "{{ name. }}", "{{ (1, }}", "{{ 'a\n b' }}", "{{ 1 if }}", "{% set true = 1 %}", "{% for none in nums %}{% endfor %}",
    "{{ name }}{{ n }}{{ f }}{{ yes }}{{ nothing }}", "{{ text }}", "{{ [name, [n]] }}", "{{ obj }}",
    "{% set x = namespace(v='') %}{% for w in words %}{% set x.v = x.v ~ w ~ (', ' if not loop.last else '') %}{% endfor %}{{ x.v }}",
    "{% set content = messages[1].content %}{% if content is string %}{{ content }}{% else %}{% for c in content %}{{ c.text }}{% endfor %}{% endif %}",
    "{%- if tools is defined and tools | length > 0 %}T{% endif %}{%- if documents is defined %}D{% endif %}",
    "{%- set f2 = tools[0]['function'] -%}{{- f2.name -}}({{- f2.parameters.properties | list | join(', ') -}})",
    "{{ '\\n' }}{{ \"\\t|\" }}", "line1\n\n\n{% if yes %}\n\nx\n\n{% endif %}\n\nend", "  {{ name }}\n  {% set a = 1 %}  \n  {{ a }}", "{% if yes %}a{%- endif %}\n\nb", "{% if yes -%}   a   {%- endif -%}   b",
    "a{% if yes %} b {% endif %}c\n{% if no %}\n{% endif %}\nd", "{{ name }}\n\n{% for x in nums %}\n- {{ x }}\n{% endfor %}\nend\n",
    "{% for u in users %}{{ u.name }}{{ ' (' ~ u.age ~ ')' if u.active }}{{ '\\n' if not loop.last }}{% endfor %}",
    "{% for u in users | sort(attribute='age') %}{{ u.name }} {% endfor %}", "{% for a in users | map(attribute='age') | unique %}{{ a }} {% endfor %}",
    "{% set d = dict(a=1) %}{{ d.a }}{{ d['a'] }}{{ d.b }}", "{% set d = {'x': 1} %}{% set d = dict(d, y=2) %}{{ d }}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{{ ''.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ name.__init__() }}",
]


def main():
    env = environment()
    rows = [("{{ " + e + " }}") for e in EXPRESSIONS] + TEMPLATES
    print(json.dumps({"variables": VARIABLES}, ensure_ascii=True))
    for template in rows:
        row = {"template": template}
        try:
            row["rendered"] = env.from_string(template).render(**VARIABLES)
        except Exception as error:  # whatever it is, ours must refuse, too
            row["error"] = f"{type(error).__name__}: {error}"[:120]
        print(json.dumps(row, ensure_ascii=True))


if __name__ == "__main__":
    sys.exit(main())
