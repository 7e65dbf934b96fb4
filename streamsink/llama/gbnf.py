"""What of a GBNF grammar llama.cpp does not check, though it ends or hangs the process over it.

llama.cpp reads a grammar by recursion, finds left recursion only where a rule is empty by its own
text, and then expands it for ever; a token within another passes its filter and fails
where it is accepted (llama-grammar.cpp: parse_sequence, detect_left_recursion, advance_stack,
accept_token). All else is left to llama.cpp itself, see `streamsink.llama.grammar_child`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Literal, NamedTuple, TypeAlias

from streamsink.errors import UsageError

MOST_BYTES = 2**18
MOST_DEPTH = 100
"""Parentheses within parentheses."""
MOST_TIMES = 2000
"""Repetitions of one item (llama-grammar.cpp: MAX_REPETITION_THRESHOLD)."""
MOST_ELEMENTS = 50_000
"""Characters, classes and names, each as often as it is repeated."""


class Item(NamedTuple):
    """A part of an alternative: text, a token or a rule, and how often."""

    kind: Literal["text", "token", "rule", "nothing"]
    name: str
    width: int
    least: int = 1
    most: int | None = 1


Alternative: TypeAlias = list[Item]
Rules: TypeAlias = dict[str, list[Alternative]]

_LEXEME = re.compile(
    r"""
    (?P<space> [ \t\r\n]+ | \#[^\r\n]* )
    | (?P<text> "(?:\\.|[^"\\])*" | \[(?:\\.|[^\]\\])*\] | \. )
    | (?P<token> !?<(?:\[\d+\]|[^>]*)> )
    | (?P<define> ::= )
    | (?P<name> [A-Za-z0-9-]+ )
    | (?P<times> [*+?] | \{\s*\d+\s*(?:,\s*\d*\s*)?\} )
    | (?P<sign> [()|] )
    """,
    re.VERBOSE | re.DOTALL,
)
_LONG_ESCAPE = re.compile(r"\\(?:U([0-9A-Fa-f]{8})|.)", re.DOTALL)
_BEYOND = r"\U00110000-\U003FFFFF"
_MOST_BY_SIGN: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def check(text: str) -> Rules:
    """Read a grammar and refuse what llama.cpp would not survive.

    Returns
    -------
    dict
        Alternatives of each rule by its name; a group is a rule with a name that none can have.

    Raises
    ------
    UsageError
        It is not GBNF, beyond the bounds above, or one that llama.cpp cannot follow.
    """
    rules = _read(text)
    _check_size(rules)
    for name, item in _items(rules):
        if item.kind == "rule" and item.name not in rules:
            raise _no(f"the rule {_shown(name)} names {item.name}, which there is not")
    empty = _rules_where(
        rules, lambda items, empty: all(_may_be_empty(item, empty) for item in items)
    )
    _check_left_recursion(rules, empty)
    _check_tokens(rules, empty)
    return rules


def bounded(text: str) -> str:
    """The grammar, its negated classes and dots kept to what Unicode has.

    llama.cpp also takes byte sequences of numbers beyond U+10FFFF for characters, which ``[^a]``
    would match; no text can be made of them.

    Raises
    ------
    UsageError
        A character beyond is asked for.
    """

    def kept(found: re.Match[str]) -> str:
        lexeme = found.group()
        for escape in _LONG_ESCAPE.finditer(lexeme):
            if escape[1] and int(escape[1], 16) > sys.maxunicode:
                raise _no(f"{escape[0]} is no character")
        if lexeme == ".":
            return f"[^{_BEYOND}]"
        if lexeme.startswith("[^") and lexeme != "[^]":
            return f"[^{_BEYOND}{lexeme[2:]}"
        return lexeme

    return _LEXEME.sub(kept, text)


def _read(text: str) -> Rules:
    rules: Rules = {}
    # Where the next item goes: the rule's alternatives, then those of each open group.
    levels: list[list[Alternative]] = []
    lexemes = [*_lexemes(text), ("end", "")]
    rule = ""
    for at, (kind, value) in enumerate(lexemes):
        if kind == "name" and lexemes[at + 1][0] == "define":
            if len(levels) > 1:
                raise _unread(f"a parenthesis of the rule {rule} is not closed")
            rule, levels = value, [[[]]]
            rules[rule] = levels[0]
        elif kind == "end" or (kind == "define" and lexemes[at - 1][0] == "name"):
            continue
        elif not levels:
            raise _unread(f"it begins with {value[:20]}, and not with a rule, root ::= …")
        elif kind == "text":
            width = 1 if value == "." else len(value) - 2
            empty = value in ('""', "[]", "[^]")
            levels[-1][-1].append(Item("nothing" if empty else "text", "", width))
        elif kind == "token":
            levels[-1][-1].append(Item("token", value, 1))
        elif kind == "name":
            levels[-1][-1].append(Item("rule", value, 1))
        elif kind == "times":
            _repeat(levels[-1][-1], value)
        elif value == "|":
            levels[-1].append([])
        elif value == "(":
            if len(levels) > MOST_DEPTH:
                raise _no(f"parentheses are nested more than {MOST_DEPTH} deep")
            group = f"{rule}({len(rules)})"
            levels[-1][-1].append(Item("rule", group, 1))
            levels.append([[]])
            rules[group] = levels[-1]
        elif value == ")" and len(levels) > 1:
            levels.pop()
        else:
            raise _unread(f"there is a {value} too many in the rule {rule}")
    if len(levels) > 1:
        raise _unread(f"a parenthesis of the rule {rule} is not closed")
    if "root" not in rules:
        raise _unread("it has no rule named root")
    return rules


def _lexemes(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _LEXEME.match(text, at)
        if not found or not found.lastgroup:
            raise _unread(f"it cannot be read at {text[at : at + 20]!r}")
        if found.lastgroup != "space":
            yield found.lastgroup, found.group()
        at = found.end()


def _repeat(items: Alternative, times: str) -> None:
    """Repeat the last item."""
    if not items:
        raise _unread(f"there is nothing before {times} that could be repeated")
    if times in _MOST_BY_SIGN:
        least, most = _MOST_BY_SIGN[times]
    else:
        lower, comma, upper = times[1:-1].partition(",")
        if max(len(lower.strip()), len(upper.strip())) > len(str(MOST_TIMES)):
            raise _no(f"{times[:20]} is more than {MOST_TIMES} times")
        least = int(lower)
        most = (int(upper) if upper.strip() else None) if comma else least
        if max(least, most or 0) > MOST_TIMES:
            raise _no(f"{times} is more than {MOST_TIMES} times")
        if most is not None and most < least:
            raise _no(f"{times} ends before it begins")
    last = items[-1]
    both = None if most is None or last.most is None else most * last.most
    items[-1] = last._replace(least=least * last.least, most=both)


def _check_size(rules: Rules) -> None:
    n_elements = sum(item.width * max(1, item.least, item.most or 0) for _, item in _items(rules))
    if n_elements > MOST_ELEMENTS:
        raise _no(f"it has {n_elements:,} elements, repeated ones counted; {MOST_ELEMENTS:,} go")


def _check_left_recursion(rules: Rules, empty: Collection[str]) -> None:
    """Refuse a rule that may begin with itself, also behind what may be empty."""
    begins: dict[str, set[str]] = {name: set() for name in rules}
    for name, alternatives in rules.items():
        for items in alternatives:
            for item in items:
                if item.kind == "rule":
                    begins[name].add(item.name)
                if not _may_be_empty(item, empty):
                    break
    try:
        TopologicalSorter(begins).prepare()
    except CycleError as error:
        circle: list[str] = list(dict.fromkeys(_shown(name) for name in reversed(error.args[1])))
        raise _no(
            f"the rule {circle[0]} may begin with itself"
            f"{' by way of ' + ', '.join(circle[1:6]) if circle[1:] else ''}: "
            "put the recursion at its end (left recursion cannot be followed)"
        ) from None


def _check_tokens(rules: Rules, empty: Collection[str]) -> None:
    """Refuse a token behind text: where both lie in one token, accepting it ends the process."""
    if not any(item.kind == "token" for _, item in _items(rules)):
        return

    def begins(items: Sequence[Item], tokens: Collection[str]) -> bool:
        for item in items:
            if item.kind == "token" or item.name in tokens:
                return True
            if not _may_be_empty(item, empty):
                return False
        return False

    def ends(items: Sequence[Item], texts: Collection[str]) -> bool:
        for item in reversed(items):
            if item.kind == "text" or item.name in texts:
                return True
            if not _may_be_empty(item, empty):
                return False
        return False

    tokens, texts = _rules_where(rules, begins), _rules_where(rules, ends)
    for name, alternatives in rules.items():
        for items in alternatives:
            after_text = False
            for item in items:
                here = item.kind == "text" or item.name in texts
                after = after_text or (here and item.most != 1)
                if after and (item.kind == "token" or item.name in tokens):
                    raise _no(
                        f"in the rule {_shown(name)} a token <…> may follow text, which llama.cpp "
                        'cannot do: write the token\'s text in quotes, "<…>"'
                    )
                after_text = here or (after_text and _may_be_empty(item, empty))


def _rules_where(
    rules: Rules, holds: Callable[[Sequence[Item], Collection[str]], bool]
) -> set[str]:
    """The rules one of whose alternatives has a property, which may hang on rules that have it."""
    users: Mapping[str, set[str]] = defaultdict(set)
    for name, item in _items(rules):
        users[item.name].add(name)
    found: set[str] = set()
    todo = deque(rules)
    while todo:
        name = todo.popleft()
        if name not in found and any(holds(items, found) for items in rules[name]):
            found.add(name)
            todo.extend(users[name])
    return found


def _items(rules: Rules) -> Iterator[tuple[str, Item]]:
    return (
        (name, item)
        for name, alternatives in rules.items()
        for items in alternatives
        for item in items
    )


def _may_be_empty(item: Item, empty: Collection[str]) -> bool:
    return item.least == 0 or item.kind == "nothing" or item.name in empty


def _shown(name: str) -> str:
    """A rule's name; a group goes by the rule it stands in."""
    return name.partition("(")[0]


def _no(why: str) -> UsageError:
    return UsageError(f"the grammar cannot be followed: {why}")


def _unread(why: str) -> UsageError:
    return UsageError(f"the grammar is not GBNF: {why}")
