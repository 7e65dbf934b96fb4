"""What becomes of turns: pinned, cut, ended, and past."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.chat.thought_stream import Said, Thoughts
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.session import export
from streamsink.session.conversation import Message
from streamsink.session.remains import what_is_left
from tests.fake_backend import BOS, EOS, FakeBackend
from tests.test_chat import SOURCE, Scripted, answer, fed, open_chat

GREEDY = Sampling(temperature=0)


def talk_on(chat: Chat, backend: Scripted, n: int) -> None:
    for at in range(n):
        answer(chat, backend, f"On {at}?", f"On it goes {at}.")


def memories(chat: Chat) -> list[str]:
    return [chat.memory(turn) for turn in chat.messages]


def opened(source: str, n_ctx: int = 400, **more: Any) -> tuple[Chat, Scripted]:
    backend = Scripted(n_ctx)
    stream = Stream(backend, SinkPolicy("system"), n_ctx)
    return Chat(stream, ChatTemplate(source, {}, **more)), backend


# -- pinned ---------------------------------------------------------------------------------------


def test_what_is_pinned_is_known_from_the_stream() -> None:
    """Pin, decide anew what is pinned, pin another: the first may be forgotten."""
    chat, backend = open_chat(SinkPolicy(4), n_ctx=160)
    answer(chat, backend, "One?", "It is one.")
    chat.pin()
    assert memories(chat) == ["pinned", "pinned"]
    chat.stream.change(n_keep=6)
    assert "pinned" not in memories(chat)
    answer(chat, backend, "Two?", "It is two.")
    chat.pin()
    talk_on(chat, backend, 9)
    assert memories(chat)[:4] == ["forgotten", "forgotten", "pinned", "pinned"]
    assert b"two" in fed(chat)
    assert b"one" not in fed(chat)


def test_an_export_knows_the_same(tmp_path: Path) -> None:
    chat, backend = open_chat(SinkPolicy(4), n_ctx=160)
    answer(chat, backend, "One?", "It is one.")
    chat.pin()
    chat.stream.change(n_keep=6)
    answer(chat, backend, "Two?", "It is two.")
    chat.pin()
    talk_on(chat, backend, 9)
    chat.save(tmp_path / "a.session")
    saved = session.read(tmp_path / "a.session")
    messages = json.loads(export.plain(saved))["messages"]
    for turn, message in zip(chat.messages, messages, strict=True):
        memory = chat.memory(turn)
        assert message["pinned"] == (memory == "pinned")
        assert message["forgotten"] == (memory == "forgotten")


def test_a_question_whose_beginning_is_gone_is_not_pinned() -> None:
    chat, backend = open_chat(SinkPolicy(4, 30), n_ctx=80)
    answer(
        chat, backend, "A question that is rather long, and will be cut?", "It was, by then, so."
    )
    answer_is = chat.memory(chat.messages[1])
    assert chat.memory(chat.messages[0]) == "cut"
    assert answer_is == "visible"
    chat.pin()
    assert memories(chat) == ["cut", "pinned"]


def test_an_answer_that_was_cut_off_is_pinned_with_its_end() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "Hi", "Ho", ends=False)
    chat.pin()
    (span,) = chat.stream.pins
    assert bytes(token % 256 for token in span).endswith(b"Ho</s>")
    answer(chat, backend, "And?", "So.")
    text = fed(chat)
    assert text.count(b"Ho</s>") == 1  # it is pinned where it stands
    assert b"Ho</s>[user]And?" in text
    assert b"</s></s>" not in text


@pytest.mark.parametrize("n_keep", [4, "system", -1])
def test_beginning_anew_is_under_the_same_policy(n_keep: Any) -> None:
    policy = SinkPolicy(n_keep)
    chat, backend = open_chat(policy, system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    before = chat.stream.stats.pinned
    chat.pin()
    assert chat.stream.policy == policy
    assert chat.stream.stats.pinned > before
    chat.reset()
    assert chat.stream.policy == policy
    answer(chat, backend, "Hi", "Ho")
    assert chat.stream.stats.pinned == before
    assert memories(chat).count("pinned") == (n_keep == -1)


@pytest.mark.parametrize("release", [False, True])
def test_another_system_prompt_leaves_what_is_pinned(release: bool) -> None:
    chat, backend = open_chat(SinkPolicy(4), system="Be kind.")
    answer(chat, backend, "My name is Ahab.", "Call me Ishmael.")
    chat.stream.change(n_keep=-1)
    chat.pin()
    if release:
        chat.unpin()
    chat.change_system("Be a pirate, always.")
    text = fed(chat)
    assert text.startswith(b"<s>[system]Be a pirate, always.</s>")
    assert b"kind" not in text
    assert text.count(b"My name is Ahab.") == 1
    assert text.count(b"Ishmael") == 1
    assert "forgotten" not in memories(chat)
    assert memories(chat)[0] == "pinned"
    talk_on(chat, backend, 30)
    assert fed(chat).startswith(b"<s>[system]Be a pirate, always.</s>[user]My name is Ahab.")
    assert memories(chat)[0] == "pinned"
    assert memories(chat)[1] == ("forgotten" if release else "pinned")


def test_a_shorter_and_a_longer_system_prompt_before_spans() -> None:
    """What of the old block still stood in the window goes with it."""
    chat, backend = open_chat(SinkPolicy(4), system="Be kind and gentle.")
    answer(chat, backend, "Hi", "Ho")
    chat.pin()
    for prompt in ("Be a pirate who sails the seven seas.", "Hm.", "Be kind again."):
        chat.change_system(prompt)
        text = fed(chat)
        assert text.startswith(f"<s>[system]{prompt}</s>".encode())
        assert text.count(b"[system]") == 1
        assert memories(chat) == ["pinned", "pinned"]
    talk_on(chat, backend, 30)
    assert fed(chat).startswith(b"<s>[system]Be kind again.</s>[user]Hi</s>[assistant]Ho</s>")


def test_released_tokens_of_an_older_prefix(tmp_path: Path) -> None:
    """They keep their places beside those of a newer one, and the session can be read again."""
    chat, backend = open_chat(SinkPolicy(4), n_ctx=200)
    answer(chat, backend, "Hello", "Ho")
    chat.change_system("You are a pirate and you love the sea.")
    chat.pin()
    path = tmp_path / "k.session"
    chat.save(path)
    saved = session.read(path)
    other, backend = open_chat(SinkPolicy(4), n_ctx=200)
    other.restore(saved, session.read_cells(path))
    assert fed(other) == fed(chat)
    assert memories(other) == memories(chat) == ["pinned", "pinned"]
    talk_on(other, backend, 9)
    assert memories(other)[:2] == ["pinned", "pinned"]


@pytest.mark.parametrize(
    ("turn", "sees", "pinned", "memory"),
    [
        ((10, 20), [(0, 4), (5, 40)], [(0, 4)], "visible"),
        ((10, 20), [(0, 4), (15, 40)], [(0, 4)], "cut"),
        ((10, 20), [(0, 4), (25, 40)], [(0, 4)], "forgotten"),
        ((10, 20), [(0, 4), (25, 40)], [(0, 4), (10, 20)], "pinned"),
        ((10, 20), [(0, 4), (25, 40)], [(0, 4), (10, 15), (15, 20)], "pinned"),
        ((10, 20), [(0, 4), (25, 40)], [(0, 4), (12, 20)], "cut"),
        ((10, 20), [(0, 4), (12, 40)], [(0, 4), (10, 14)], "visible"),
        ((0, 20), [(0, 4), (25, 40)], [(0, 4)], "forgotten"),
        ((0, 20), [(0, 30), (35, 40)], [(0, 30)], "pinned"),
        ((20, 20), [(0, 4), (5, 20)], [(0, 4)], "visible"),
        ((20, 25), [(0, 4), (5, 20)], [(0, 4)], "visible"),  # its tokens wait to be evaluated
        ((10, 20), [], [], "forgotten"),
    ],
)
def test_what_is_left(
    turn: tuple[int, int], sees: list[tuple[int, int]], pinned: Any, memory: str
) -> None:
    assert what_is_left(Message("user", "", *turn), sees, pinned) == memory


# -- the end of an answer -------------------------------------------------------------------------


def test_the_template_ends_an_answer_not_the_model() -> None:
    """The model draws its end-of-text token where the template writes another."""
    source = SOURCE.replace("</s>", "<end>")
    chat, backend = opened(source)
    answer(chat, backend, "A colour?", "Red.")
    assert chat.stream.visible_tokens()[-1] == EOS
    answer(chat, backend, "Another?", "Blue.")
    assert b"Red.<end>[user]Another?<end>[assistant]Blue.</s>" in fed(chat)
    assert EOS not in chat.stream.visible_tokens()[:-1]


def test_an_end_that_is_no_token_is_a_stop() -> None:
    """The model writes it out; it is not part of the answer, and not there twice."""
    chat, backend = opened(SOURCE.replace("</s>", "<end_of_turn>"))
    backend.says("Red.<end_of_turn><end_of_turn>", ends=False)
    assert "".join(step.text for step in chat.say("A colour?", 40)) == "Red."
    assert chat.messages[-1].text == "Red."
    answer(chat, backend, "Another?", "Blue.")
    assert b"Red.<end_of_turn>[user]Another?<end_of_turn>[assistant]Blue." in fed(chat)


@pytest.mark.parametrize("stop", ["e.", "is", "thr", "three"])
def test_what_belongs_to_a_stop_goes(stop: str) -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    backend.says("This is three.", ends=False)
    text = "".join(step.text for step in chat.say("Hm?", 40, [stop]))
    assert text == "This is three.".partition(stop)[0]
    answer(chat, backend, "And?", "So.")
    assert f"[assistant]{text}</s>[user]And?</s>".encode() in fed(chat)


# -- thoughts -------------------------------------------------------------------------------------

THINKS = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}</s>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def test_old_thoughts_leave_the_window() -> None:
    chat, backend = opened(THINKS)
    answer(chat, backend, "2+2?", "<think>\nHm, four.\n</think>\n\nIt is 4.")
    assert b"Hm, four." in fed(chat)
    answer(chat, backend, "And 3?", "<think>\nHm, 6.\n</think>\n\nIt is 6.")
    text = fed(chat)
    assert b"[user]2+2?</s>[assistant]It is 4.</s>[user]And 3?</s>[assistant]<think>" in text
    assert b"four" not in text
    words = [
        bytes(t % 256 for t in chat.stream.tokens_between(w.start, w.stop)) for w in chat.messages
    ]
    assert words[0].endswith(b"2+2?</s>[assistant]")
    assert words[1] == b"It is 4.</s>"
    assert words[2].startswith(b"[user]And 3?")
    assert [turn.text[:7] for turn in chat.messages[1::2]] == ["<think>"] * 2


def test_what_is_written_before_an_answer_goes_once_it_is_past() -> None:
    chat, backend = opened(THINKS, thinking=False)
    answer(chat, backend, "2+2?", "It is 4.")
    assert b"[assistant]<think>\n\n</think>\n\nIt is 4.</s>" in fed(chat)
    answer(chat, backend, "And 3?", "It is 6.")
    text = fed(chat)
    assert text.startswith(
        b"<s>[user]2+2?</s>[assistant]It is 4.</s>[user]And 3?</s>[assistant]<th"
    )


def test_a_thought_that_the_template_opens() -> None:
    source = THINKS.replace("[assistant]{% if enable", "[assistant]<think>\n{% if enable")
    chat, backend = opened(source)
    assert chat.template.opens_thought
    answer(chat, backend, "2+2?", "Hm, four.\n</think>\n\nIt is 4.")
    answer(chat, backend, "And 3?", "Hm, 6.\n</think>\n\nIt is 6.")
    assert b"[user]2+2?</s>[assistant]It is 4.</s>[user]And 3?</s>[assistant]<think>" in fed(chat)


def test_a_header_that_stands_before_an_answer_only_once_it_is_past() -> None:
    """As gpt-oss has it: the model writes what leads to its answer, and what leads to a thought."""
    source = (
        "{% for m in messages %}<|start|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
        "{% if m.role == 'assistant' and '</think>' in m.content %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}</s>"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    chat, backend = opened(source)
    answer(chat, backend, "2+2?", "<think>Hm, four.</think>It is 4.")
    answer(chat, backend, "And 3?", "It is 6.")
    assert b"four" not in fed(chat)
    assert b"<|start|>assistant<|channel|>final<|message|>It is 4.</s><|start|>user" in fed(chat)
    assert fed(chat).count(b"2+2?") == 1


def test_thoughts_stay_where_the_template_keeps_them() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "2+2?", "<think>\nHm, four.\n</think>\n\nIt is 4.")
    index = chat.stream.stats.index
    answer(chat, backend, "And 3?", "It is 6.")
    assert b"[assistant]<think>\nHm, four.\n</think>\n\nIt is 4.</s>" in fed(chat)
    assert chat.messages[2].start == index


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_thoughts_are_told_from_answers(size: int) -> None:
    text = "<think>\nSo <b> it </thin is.\n</think>\n\nYes.<think>Or?</think> No <thi"
    said: list[Said] = []
    thoughts = Thoughts(("<think>", "</think>"))
    for at in range(0, len(text), size):
        said += thoughts.push(text[at : at + size], final=at + size >= len(text))
    found = {thought: "".join(s.text for s in said if s.thought == thought) for thought in (0, 1)}
    assert found == {1: "So <b> it </thin is.\nOr?", 0: "Yes. No <thi"}
    assert Thoughts(None).push("<think>x") == [("<think>x", False)]
    assert Thoughts(("[", "]"), inside=True).push("a]b", final=True) == [("a", True), ("b", False)]


# -- characters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Ä", "鯨", "🐋", "a鯨b🐋"])
def test_a_character_in_two_generations(text: str) -> None:
    data = text.encode()
    for cut in range(1, len(data)):
        backend = Scripted(64)
        with Stream(backend, SinkPolicy(4), 64) as stream:
            stream.feed("whale ")
            backend.script = iter([*data, EOS])
            steps = [
                *stream.generate(cut, sampling=GREEDY),
                *stream.generate(40, sampling=GREEDY),
            ]
            assert "".join(step.text for step in steps) == text


def test_a_broken_character_is_one_mark() -> None:
    backend = Scripted(64)
    with Stream(backend, SinkPolicy(4), 64) as stream:
        stream.feed("whale ")
        backend.script = iter(["鯨".encode()[0], ord("x"), EOS])
        assert [step.text for step in stream.generate(1, sampling=GREEDY)] == [""]
        rest = "".join(step.text for step in stream.generate(9, sampling=GREEDY))
        assert rest == "\ufffdx"


# -- sessions of an earlier version ---------------------------------------------------------------


def test_a_session_of_version_1(tmp_path: Path) -> None:
    """Its spans were counted by the policy, and its block was known by its end."""
    chat, backend = open_chat(SinkPolicy(4), n_ctx=200, system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    chat.pin()
    answer(chat, backend, "And?", "So.")
    path = tmp_path / "new.session"
    chat.save(path)
    with zipfile.ZipFile(path) as archive:
        record, cells = json.loads(archive.read("session.json")), archive.read("cells.bin")
    record["version"] = 1
    pinned = record["stream"]["pinned"]
    pinned["spans"] = [span["tokens"] for span in pinned["spans"]]
    del pinned["n_prefix"]
    record["stream"]["policy"]["n_keep"] = record["stream"]["n_keep"]
    record["talk"]["block_end"] = record["talk"].pop("block")[1]
    for turn in record["talk"]["turns"]:
        turn["pinned"] = True
    old = tmp_path / "old.session"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("session.json", json.dumps(record))
        archive.writestr("cells.bin", cells)

    saved = session.read(old)
    other, backend = open_chat(SinkPolicy(4), n_ctx=200)
    assert other.restore(saved, session.read_cells(old)).n_evaluated == 0
    assert fed(other) == fed(chat)
    assert other.stream.pins == chat.stream.pins
    talk_on(other, backend, 9)
    assert b"[user]Hi</s>[assistant]Ho</s>" in fed(other)
    other.unpin()
    assert other.stream.stats.pinned == 4
    other.change_system("Be a pirate.")
    assert fed(other).startswith(b"<s>[system]Be a pirate.</s>")


def test_bos_is_there_once() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    chat.change_system("Be brief.")
    assert chat.stream.visible_tokens().count(BOS) == 1
    with pytest.raises(UsageError, match="no message 9"):
        chat.quote(8)
    assert isinstance(backend, FakeBackend)
