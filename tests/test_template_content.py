"""What templates make of words, held against a plain rendering of the same conversation."""

from __future__ import annotations

from collections.abc import Callable

import llama_cpp.llama_chat_format as published
import pytest

from streamsink.chat.rendering_child import most_characters
from streamsink.chat.template import ChatTemplate
from streamsink.errors import ModelError, UsageError
from tests.try_templates import SPECIAL, differences, joined, plainly, said


def turns(user: str, *, system: str = "[{c}]", before: str = "", after: str = "") -> str:
    """A template, by what it writes for a user's content, ``{c}`` in it, and for a system's."""
    content = "message['content']"
    return (
        f"{before}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}<u>{user.replace('{c}', content)}</u>\n"
        f"{{% elif message['role'] == 'system' %}}<s>{system.replace('{c}', content)}</s>\n"
        f"{{% else %}}<a>{{{{ {content} }}}}</a>\n{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<a>{{% endif %}}{after}"
    )


PLAIN = "{{ {c} }}"
WRITTEN = {
    "as it is": turns(PLAIN, system=PLAIN),
    "trimmed": turns("{{ {c} | trim }}", system="{{ {c}.strip() }}"),
    "in capitals": turns("{{ {c} | upper }}", system=PLAIN),
    "a capital first": turns("{{ {c} | capitalize }}", system="{{ {c} | title }}"),
    "spaces replaced": turns("{{ {c} | replace(' ', '_') }}", system=PLAIN),
    "escaped": turns("{{ {c} | e }}", system="{{ {c} | e }}"),
    "json": turns("{{ {'text': {c}} | tojson }}", system="{{ {c} | tojson(indent=2) }}"),
    "ascii json": turns("{{ {c} | tojson(ensure_ascii=True) }}", system=PLAIN),
    "first line marked": turns(
        "{% if {c}.startswith('<tool') %}!{% endif %}{{ {c} }}", system=PLAIN
    ),
    "by how it ends": turns("{{ {c} }}{% if {c}.endswith('</s>') %}!{% endif %}", system=PLAIN),
    "its length": turns("{{ {c} }}{% if {c} | length > 30 %} (long){% endif %}", system=PLAIN),
    "by turn": turns("Round {{ loop.index0 }}: {{ {c} }}", system=PLAIN),
    "the last reminded": turns("{{ {c} }}{% if loop.last %} (Be brief.){% endif %}", system=PLAIN),
    "as parts": turns("{% for p in {c} %}{{ p['text'] }}{% endfor %}", system=PLAIN),
    "all as parts": turns(
        "{% for p in {c} %}{{ p.text | trim }}{% endfor %}", system="{{ {c}[0]['text'] }}"
    ),
    "as parts only": turns(
        "{% if {c} is string %}{{ raise_exception('parts') }}{% endif %}{{ {c}[0].text }}",
        system=PLAIN,
    ),
    "either way": turns(
        "{% if {c} is string %}{{ {c} }}{% else %}"
        "{% for p in {c} %}{{ p.text }}{% endfor %}{% endif %}",
        system=PLAIN,
    ),
    "a day before it": turns(PLAIN, system="{{ strftime_now('%Y %B') }} {{ {c} }}"),
}
SAID = (
    "Hi",
    "  a \n b\t",
    "<tool>x</tool>",
    "Über </s> und <|im_end|>",
    '"{{ x }}" \\ &',
    "1234567890",
)


@pytest.mark.parametrize("source", WRITTEN.values(), ids=list(WRITTEN))
def test_what_is_fed_is_what_the_template_makes_of_the_words(source: str) -> None:
    found = list(differences(source))
    faults = [seen for verdict, seen in found if verdict not in ("equal", "rewritten")]
    assert not faults, faults[0]
    assert found[0][0] == "equal"


PUBLISHED = {
    name: text for name, text in vars(published).items() if name.endswith("_CHAT_TEMPLATE")
}


@pytest.mark.parametrize("source", PUBLISHED.values(), ids=list(PUBLISHED))
def test_published_templates_turn_by_turn(source: str) -> None:
    assert {verdict for verdict, _ in differences(source)} <= {"equal", "refused"}


@pytest.mark.parametrize("source", [WRITTEN["as it is"], WRITTEN["trimmed"], WRITTEN["as parts"]])
def test_words_are_parts_of_their_own(source: str) -> None:
    template = ChatTemplate(source, SPECIAL)
    for words in SAID:
        opened = template.opening("", words)
        for block, rest in (opened, template.next_turn(words)):
            theirs = [text for text, special in (*block, *rest) if not special]
            assert [text.strip() for text in theirs] == [words.strip()]
            assert not any(words in text for text, special in (*block, *rest) if special)


LOST = {
    "left out": ("<u>?</u>", "leaves words out"),
    "a length": ("{{ {c}[:20] }}", "leaves out a part"),
    "the first line": ("{{ {c}.split('\n')[0] }}", "leaves out a part"),
    "what follows a mark": ("{{ {c}.split('</think>')[-1] }}", "leaves out a part"),
    "a title": ("{{ {c}[:12] }}: {{ {c} }}", "writes a part of the words twice"),
    "twice": ("{{ {c} }} {{ {c} }}", "writes words 2 times"),
}


@pytest.mark.parametrize(("user", "why"), LOST.values(), ids=list(LOST))
def test_words_that_would_be_lost_are_refused(user: str, why: str) -> None:
    words = "I </think> am\nAda, and I live here."
    template = ChatTemplate(turns(user, system=PLAIN), SPECIAL)
    with pytest.raises(UsageError, match=f"{why}.*chat_template"):
        template.opening("", words)
    with pytest.raises(UsageError, match=f"{why}.*chat_template"):
        template.next_turn(words)
    if why == "leaves out a part":  # as from a word
        assert "Hi" in joined(*template.opening("", "Hi"))  # nothing of this is lost


def test_a_template_that_leaves_out_who_says_nothing() -> None:
    """What is before a turn does not depend on what is said in it."""
    source = turns("{{ {c} }}", system=PLAIN).replace(
        "<u>{{ message['content'] }}</u>\n",
        "{% if message['content'] %}<u>{{ message['content'] }}</u>\n{% endif %}",
    )
    template = ChatTemplate(source, SPECIAL)
    assert joined(template.before_turn()) == "</a>\n<u>"
    assert joined(template.system_block("Be.")) == "<s>Be.</s>\n"
    for words in ("", " ", "\n"):
        try:
            said_so = joined(*template.opening("", words))
        except UsageError as error:
            assert "chat_template" in str(error)  # noqa: PT017 - either is right
        else:
            assert said_so == plainly(source, [said("user", words)])


# -- the system prompt --------------------------------------------------------------------------

NO_SYSTEM = {
    "refused": turns(PLAIN, system="{{ raise_exception('System role not supported') }}"),
    "left out": turns(PLAIN, system=""),
    "left out by role": (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    ),
    "cut": turns(PLAIN, system="{{ {c}[:12] }}"),
    "alternating": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user, assistant, user') }}{% endif %}<{{ m.role }}>{{ m.content }}"
        "{% endfor %}"
    ),
}


@pytest.mark.parametrize("source", NO_SYSTEM.values(), ids=list(NO_SYSTEM))
def test_a_system_prompt_that_would_be_lost_is_refused(source: str) -> None:
    template = ChatTemplate(source, SPECIAL)
    with pytest.raises(UsageError, match=r"takes no such system prompt: .*system"):
        template.opening("You are a pirate and you love the sea.", "Hi")
    assert "Hi" in joined(*template.opening("", "Hi"))


CHECKED = (  # a system message alone is refused, as a conversation without a question
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ raise_exception('No user query found in messages.') }}{% endif %}"
)
FOLDED = (
    "{% for m in messages %}{% if m.role == 'user' %}[I] {% if loop.index0 <= 1 %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}You help.{% endif %}"
    "\n\n{% endif %}{{ m.content }} [/I]{% elif m.role == 'assistant' %} {{ m.content }} </s>"
    "{% endif %}{% endfor %}"
)
DEFAULT = turns(
    PLAIN, system=PLAIN, before="{% if messages[0].role != 'system' %}<s>Help.</s>\n{% endif %}"
)

INST = (  # a system message alone begins the user's turn
    "<s>{% for m in messages %}{% if m.role == 'system' %}[I] {{ m.content }}\n"
    "{% elif m.role == 'user' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'system' %}[I] {% endif %}"
    "{{ m.content }} [/I]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
CHANGED_END = (  # and the last answer ends in another way than those before
    "{% if messages[0].role != 'system' %}<s>Help.<end>{% endif %}"
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}"
    "{{ '<eot>' if m.role == 'assistant' and loop.last else '<end>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "system", "block"),
    [
        (turns(PLAIN, system=PLAIN), "Be.", "<s>Be.</s>\n"),
        (CHECKED + turns(PLAIN, system=PLAIN), "Be.", "<s>Be.</s>\n"),
        (CHECKED + turns(PLAIN, system=PLAIN), "", ""),
        (CHECKED + turns("{{ {c}[0].text }}", system="{{ {c}[0].text }}"), "Be.", "<s>Be.</s>\n"),
        (CHECKED + turns(PLAIN, system=PLAIN, before="<bos>"), "", "<bos>"),
        (DEFAULT, "", "<s>Help.</s>\n"),
        (DEFAULT, "Be.", "<s>Be.</s>\n"),
        (INST, "", "<s>"),
        (INST, "Be.", "<s>[I] Be.\n"),
        (CHANGED_END, "", "<s>Help.<end>"),
        (CHANGED_END, "Be.", "<s>Be.<end>"),
        (FOLDED, "Be.", "[I] Be.\n"),
        (FOLDED, "", "[I] You help.\n"),
        (FOLDED, "Be [I] ", "[I] Be [I] \n"),
    ],
)
def test_the_system_block_ends_where_the_user_turn_begins(
    source: str, system: str, block: str
) -> None:
    template = ChatTemplate(source, SPECIAL)
    assert joined(template.opening(system, "Hi")[0]) == block
    assert joined(template.system_block(system)) == block


def test_a_system_prompt_that_moves_on_is_in_the_block_alone() -> None:
    """As Mistral-Nemo's, that a template puts before the newest question."""
    source = (
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[I]"
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
        "{{ m.content }}[/I]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    template = ChatTemplate(source, SPECIAL)
    assert joined(*template.opening("Be.", "Hi")) == "[I]Be.\nHi[/I]"
    assert joined(*template.next_turn("And?", system="Be.")) == "</s>[I]And?[/I]"
    assert {verdict for verdict, _ in differences(source)} == {"equal", "moved"}


# -- the environment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("a{% generation %}{% set x = 1 %}b{% endgeneration %}c{{ x }}", "abc"),
        ("{{ {'b': '<ü&>', 'a': 1} | tojson }}", '{"b": "<ü&>", "a": 1}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true) }}", '{"a": [2], "b": 1}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ 'ü' | tojson(ensure_ascii=true) }}", '"\\u00fc"'),
        ("{{ tools is none }} {{ documents is none }} {{ tools is defined }}", "True True True"),
        ("{{ pad_token is defined }}{{ unknown_token }}{{ bos_token }}", "False<s>"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{% set n = namespace(i=0) %}{% set n.i = n.i + 1 %}{{ n.i }}", "1"),
        ("{{ tools | length }}", "0"),  # counts them without asking whether there are any
    ],
)
def test_the_environment_is_that_of_the_authors(source: str, text: str) -> None:
    assert ChatTemplate(source, SPECIAL).render([], False) == text
    if "length" not in source:
        assert plainly(source, []) == text


def test_a_rendering_has_one_time_of_day() -> None:
    template = ChatTemplate("{{ strftime_now('%S.%f') }}" + turns(PLAIN, system=PLAIN), SPECIAL)
    for _ in range(20):
        assert "Hi" in joined(*template.opening("Be.", "Hi"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(999) %}{% for j in range(999) %}abc{% endfor %}{% endfor %}",
        "{{ messages[0].content * 100000 }}",
        "{% set n = namespace(s='x') %}{% for i in range(22) %}{% set n.s = n.s ~ n.s %}"
        "{% endfor %}{{ n.s }}",
    ],
)
def test_a_text_out_of_all_proportion_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match=r"characters of a conversation of which it may make"):
        ChatTemplate(source, SPECIAL).render([said("user", "Say something.")], True)


def test_a_long_question_is_in_proportion() -> None:
    words = "🙂\n" * 50_000
    template = ChatTemplate(WRITTEN["ascii json"], SPECIAL)
    assert len(joined(*template.opening("", words))) > 14 * 50_000
    assert most_characters("", [said("user", words)]) > 14 * 50_000


def test_a_reason_is_no_longer_than_a_screen() -> None:
    with pytest.raises(ModelError) as caught:
        ChatTemplate("{{ raise_exception('no' * 100000) }}", SPECIAL).render([], True)
    assert len(str(caught.value)) < 500


# -- what ends an answer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "closing", "stops"),
    [
        ("", "<|im_end|>\n", ("<|im_end|>",)),
        (turns(PLAIN, system=PLAIN), "</a>\n", ("</a>",)),
        (FOLDED, " </s>", ("</s>",)),
        # An answer ends in another way where it is the last.
        (
            turns(PLAIN, system=PLAIN).replace(
                "</a>\n", "{% if loop.last %}<end>{% else %}</a>{% endif %}\n"
            ),
            "</a>",
            ("</a>", "<end>"),
        ),
        # Only the next word of the user ends it.
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "\n",
            ("user:",),
        ),
        # Nothing ends the last of them.
        (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
            "{% if not loop.last %}<end>{% endif %}{% endfor %}",
            "<end>",
            ("<end>",),
        ),
    ],
)
def test_what_ends_an_answer(source: str, closing: str, stops: tuple[str, ...]) -> None:
    template = ChatTemplate(source, SPECIAL)
    assert template.closing_text == closing == joined(template.closing)
    assert template.stops == stops
    assert joined(template.next_turn("And?")[0]).startswith(closing)


# -- thoughts -----------------------------------------------------------------------------------

# As Qwen3: a switch, an empty thought where there is to be none, and old ones left out.
SWITCH = (
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<{{ m.role }}>\n{{ c }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# As DeepSeek-R1: every answer begins with a thought.
ALWAYS = SWITCH.replace("{% if enable_thinking is defined and not enable_thinking %}", "{% if 1 %}")
ALWAYS = ALWAYS.replace("<think>\n\n</think>\n\n", "<think>\n")
# As gpt-oss: thoughts are fields, the marks are channels, and the newest thought alone is kept.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if loop.last and m.reasoning_content %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# As Kimi: the switch has another name, and thoughts are kept.
KEPT = (
    "{% for m in messages %}<{{ m.role }}>{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]"
    "{% endif %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if thinking is defined and thinking %}[THINK]{% endif %}{% endif %}"
)
# As Gemma 4: no thought is ever written, but one of no words.
EMPTY = (
    "{% if enable_thinking is defined and enable_thinking %}<|think|>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is not defined or not enable_thinking %}"
    "<|channel>thought\n<channel|>{% endif %}{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "thinking", "marks", "has_switch", "opens"),
    [
        ("", None, None, False, False),
        (SWITCH, None, ("<think>", "</think>"), True, False),
        (SWITCH, False, ("<think>", "</think>"), True, False),
        (ALWAYS, None, ("<think>", "</think>"), False, True),
        (
            CHANNELS,
            None,
            (
                "<|channel|>analysis<|message|>",
                "<|end|><|start|>assistant<|channel|>final<|message|>",
            ),
            False,
            False,
        ),
        (EMPTY, None, ("<|channel>thought", "<channel|>"), True, False),
        (KEPT, None, ("[THINK]", "[/THINK]"), True, False),
        (KEPT, True, ("[THINK]", "[/THINK]"), True, True),
    ],
)
def test_marks_of_a_thought(
    source: str,
    thinking: bool | None,
    marks: tuple[str, str] | None,
    has_switch: bool,
    opens: bool,
) -> None:
    template = ChatTemplate(source, SPECIAL, thinking=thinking)
    assert template.thought_marks == marks
    assert template.has_thinking_switch is has_switch
    assert template.opens_thought is opens
    assert template.other("").thinking is thinking


def test_the_switch_is_passed_on() -> None:
    on, off = (ChatTemplate(SWITCH, SPECIAL, thinking=thinking) for thinking in (True, False))
    assert joined(*on.opening("", "Hi")).endswith("<assistant>\n")
    assert joined(*off.opening("", "Hi")).endswith("<think>\n\n</think>\n\n")
    assert joined(*off.next_turn("Hi")).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("source", "answer", "past"),
    [
        (SWITCH, "<think>\nHm.\n</think>\n\nRed.", "Red."),
        (SWITCH, "Red.", "Red."),
        (SWITCH, "<think>\nHm, and cut", "<think>\nHm, and cut"),
        (ALWAYS, "Hm.\n</think>\n\nRed.", "Red."),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>R",
            "R",
        ),
        (KEPT, "[THINK]Hm.[/THINK]Red.", "[THINK]Hm.[/THINK]Red."),
        (turns(PLAIN).replace("'] }}</a>", "'] | trim }}</a>"), " Red. \n", "Red."),
    ],
)
def test_what_is_left_of_an_answer(source: str, answer: str, past: str) -> None:
    template = ChatTemplate(source, SPECIAL)
    assert template.past(answer) == past


def test_an_exchange_as_it_is_once_another_follows() -> None:
    template = ChatTemplate(ALWAYS, SPECIAL)
    fed = joined(*template.opening("", "Why <end>?"))
    assert fed == "<user>\nWhy <end>?<end>\n<assistant>\n<think>\n"
    settled = template.settled("Why <end>?", "Hm.\n</think>\n\nBecause.")
    assert settled == [
        ("Why <end>?", False),
        ("<end>\n<assistant>\n", True),
        ("Because.", False),
    ]
    head, rest = (joined(half) for half in template.next_turn("So?"))
    messages = [said("user", "Why <end>?"), said("assistant", "Because."), said("user", "So?")]
    assert "<user>\n" + joined(settled) + head + rest == plainly(ALWAYS, messages)


# -- a template of its own process --------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda template: template.opening("", "Hi"),
        lambda template: template.next_turn("Hi"),
        lambda template: template.stops,
        lambda template: template.thought_marks,
    ],
)
def test_a_template_that_hangs_is_asked_once(
    ask: Callable[[ChatTemplate], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its refusals are looked into; its death is the end of the matter."""
    monkeypatch.setattr("streamsink.chat.renderer.SECONDS", 0.5)
    template = ChatTemplate("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, SPECIAL)
    with pytest.raises(ModelError, match="no answer within"):
        ask(template)
