"""A conversation on the fake backend: what the stream is fed, what is pinned, what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.chat.writer import LEAST_SINK
from streamsink.core.policy import Keep, SinkPolicy
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.session.conversation import Message
from tests.fake_backend import BOS, EOS, FakeBackend

SOURCE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Scripted(FakeBackend):
    """A model that says what it is told to."""

    def __init__(self, n_cells: int) -> None:
        super().__init__(n_cells)
        self.script: Iterator[int] = iter(())

    def says(self, text: str, *, ends: bool = True) -> None:
        self.script = iter([*text.encode(), *([EOS] if ends else [])])

    def sample(self, sampler: object, index: int) -> int:
        return next(self.script)


def open_chat(policy: SinkPolicy, n_ctx: int = 400, system: str = "") -> tuple[Chat, Scripted]:
    backend = Scripted(n_ctx)
    return Chat(Stream(backend, policy, n_ctx), ChatTemplate(SOURCE, {}), system), backend


def fed(chat: Chat) -> bytes:
    """Everything the stream can see, as text."""
    special = {BOS: b"<s>", EOS: b"</s>"}
    return b"".join(special.get(t, bytes([t % 256])) for t in chat.stream.visible_tokens())


def answer(chat: Chat, backend: Scripted, text: str, says: str, *, ends: bool = True) -> str:
    backend.says(says, ends=ends)
    return "".join(step.text for step in chat.say(text, len(says) + ends))


def test_turns_follow_the_template() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    assert answer(chat, backend, "Hi", "Ho") == "Ho"
    answer(chat, backend, "And?", "So.")
    chat.stream.feed(())
    assert fed(chat).decode() == (
        "<s>[system]Be kind.</s>[user]Hi</s>[assistant]Ho</s>[user]And?</s>[assistant]So.</s>"
    )
    assert [(turn.role, turn.text) for turn in chat.messages] == [
        ("user", "Hi"),
        ("assistant", "Ho"),
        ("user", "And?"),
        ("assistant", "So."),
    ]
    assert chat.stream.stats.pinned == len("<[system]Be kind.</s>")


def test_an_answer_that_was_cut_off_is_ended_by_the_template() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "Hi", "Ho", ends=False)
    answer(chat, backend, "And?", "So.")
    assert b"[assistant]Ho</s>[user]And?</s>" in fed(chat)


def test_without_a_system_block_there_is_still_a_sink() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "Hi", "Ho")
    assert chat.stream.stats.pinned == LEAST_SINK


def test_the_system_block_stays_and_the_rest_goes() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=64, system="Be kind.")
    for n in range(20):
        answer(chat, backend, f"Question {n}?", "It is so.")
    assert fed(chat).startswith(b"<s>[system]Be kind.</s>")
    assert b"Question 3" not in fed(chat)
    assert b"Question 19" in fed(chat)
    assert len(chat.messages) == 40


def test_the_system_prompt_may_change() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    assert chat.change_system("Be brief.") == 0
    answer(chat, backend, "Hi", "Ho")
    n_evaluated = chat.change_system("Be a pirate.")
    assert n_evaluated == chat.stream.stats.pinned < len(chat.stream.visible_tokens())
    assert fed(chat).startswith(b"<s>[system]Be a pirate.</s>[user]Hi</s>[assistant]Ho")
    assert chat.stream.stats.pinned == len("<[system]Be a pirate.</s>") - len("/s>") + 3
    answer(chat, backend, "And?", "So.")
    assert b"Ho</s>[user]And?</s>[assistant]So." in fed(chat)


def test_a_system_prompt_changes_exactly() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    assert chat.change_system("Be a pirate.", exact=True) == len(chat.stream.visible_tokens())
    assert fed(chat).startswith(b"<s>[system]Be a pirate.</s>[user]Hi</s>[assistant]Ho")


@pytest.mark.parametrize("n_keep", [0, 4, 30])
def test_a_system_prompt_changes_under_any_keep(n_keep: int) -> None:
    chat, backend = open_chat(SinkPolicy(n_keep), system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    for prompt in ("Be a pirate.", "Be.", "Be a very polite pirate."):
        chat.change_system(prompt)
        whole = f"<s>[system]{prompt}</s>[user]Hi</s>[assistant]Ho"
        assert fed(chat).startswith(whole.encode())
        assert chat.stream.policy.n_keep == n_keep
    answer(chat, backend, "And?", "So.")
    assert b"Ho</s>[user]And?</s>[assistant]So." in fed(chat)


def test_a_system_prompt_without_room_changes_nothing() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=64, system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    before = fed(chat)
    with pytest.raises(UsageError, match="n_ctx"):
        chat.change_system("x" * 100)
    assert fed(chat) == before
    assert chat.system == "Be kind."


def test_a_reset_chat_begins_anew() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    chat.reset()
    assert chat.messages == []
    answer(chat, backend, "Again", "Yes")
    assert fed(chat).startswith(b"<s>[system]Be kind.</s>[user]Again</s>[assistant]Yes")


def test_whole_turns_leave() -> None:
    """A question leaves with its answer, and what is left begins with a question."""
    chat, backend = open_chat(SinkPolicy("system", "turn"), n_ctx=150, system="Be kind.")
    for n in range(30):
        answer(chat, backend, f"Question {n}?", "It is so." * (n % 3 + 1))
        seen = fed(chat)
        assert seen.startswith(b"<s>[system]Be kind.</s>[user]Question")
        assert seen.count(b"[user]") == seen.count(b"[assistant]")


@pytest.mark.parametrize("n_keep", ["system", 4])
def test_an_exchange_that_is_pinned_is_there_at_the_end(n_keep: Keep) -> None:
    chat, backend = open_chat(SinkPolicy(n_keep, 1), n_ctx=150, system="Be kind.")
    answer(chat, backend, "Hello?", "Hello.")
    answer(chat, backend, "I am Ada.", "Noted.")
    chat.pin()
    for n in range(30):
        answer(chat, backend, f"Question {n}?", "It is so.")
        assert b"[user]I am Ada.</s>[assistant]Noted." in fed(chat)
    assert b"Hello?" not in fed(chat)
    chat.change_system("Be brief.")
    assert b"[system]Be brief.</s>" in fed(chat)
    assert b"[user]I am Ada." in fed(chat)
    chat.unpin()
    answer(chat, backend, "Who am I?", "I do not know.")
    assert b"Ada" not in fed(chat)
    with pytest.raises(UsageError, match="nothing is pinned"):
        chat.unpin()


def test_nothing_said_is_nothing_pinned() -> None:
    chat, _ = open_chat(SinkPolicy("system"))
    with pytest.raises(UsageError, match="nothing was said"):
        chat.pin()


# -- what is known of turns ---------------------------------------------------------------------


def spoken(chat: Chat, turn: Message) -> bytes:
    """The tokens of a turn, if all of the stream is still there."""
    tokens = chat.stream.visible_tokens()[turn.start : turn.stop]
    return b"".join({BOS: b"<s>", EOS: b"</s>"}.get(t, bytes([t % 256])) for t in tokens)


def test_turns_know_their_tokens() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    answer(chat, backend, "Hi", "Ho")
    answer(chat, backend, "And?", "So.", ends=False)
    answer(chat, backend, "Then?", "Now.")
    assert [spoken(chat, turn).decode() for turn in chat.messages] == [
        "[user]Hi</s>[assistant]",
        "Ho</s>",
        "[user]And?</s>[assistant]",
        "So.</s>",
        "[user]Then?</s>[assistant]",
        "Now.</s>",
    ]


def test_what_is_left_of_turns() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=130, system="Be kind.")
    answer(chat, backend, "My cat is Miso", "Oh")
    chat.pin()
    assert [chat.memory(turn) for turn in chat.messages] == ["pinned", "pinned"]
    for n in range(6):
        answer(chat, backend, f"Q{n}?", "It is so.")
    found = [chat.memory(turn) for turn in chat.messages]
    assert found[:2] == ["pinned", "pinned"]
    assert found[2] == "forgotten"
    assert found[-1] == "visible"
    assert found[2:] == sorted(found[2:], key=["forgotten", "cut", "visible"].index)
    with pytest.raises(UsageError, match="nothing of"):
        chat.stream.pin(*[(turn.start, turn.stop) for turn in chat.messages][2])
    chat.unpin()
    assert chat.memory(chat.messages[0]) == "forgotten"


def test_an_exchange_is_pinned_once() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "Hi", "Ho")
    chat.pin()
    with pytest.raises(UsageError, match="pinned already"):
        chat.pin()
    chat.unpin()
    chat.pin()


def test_words_are_found_in_forgotten_turns() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=64)
    answer(chat, backend, "My cat is Miso", "A fine name")
    answer(chat, backend, "My dog is Rex", "A fine dog")
    for _ in range(6):
        answer(chat, backend, "And so on?", "Yes, on.")
    assert chat.recall("fine") == [1, 3]
    assert chat.recall("CAT my") == [0]
    assert chat.recall("fish") == []
    assert chat.memory(chat.messages[0]) == "forgotten"


def test_a_quote_goes_into_the_window_at_once_and_begins_the_next_turn() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=160)
    answer(chat, backend, "My cat is Miso", "A fine name")
    for _ in range(5):
        answer(chat, backend, "And so on?", "Yes, on.")
    assert b"Miso" not in fed(chat)
    chat.quote(0)
    assert fed(chat).endswith(b"</s>[user]Earlier I said:\n> My cat is Miso\n\n")
    chat.quote(1)
    answer(chat, backend, "Who?", "Miso.", ends=False)
    whole = (
        "[user]Earlier I said:\n> My cat is Miso\n\nEarlier you said:\n> A fine name\n\n"
        "Who?</s>[assistant]Miso."
    )
    chat.stream.feed(())
    assert fed(chat).endswith(whole.encode())
    assert chat.messages[-2].text.endswith("A fine name\n\nWho?")
    answer(chat, backend, "So?", "Yes.")
    assert b"Miso.</s>[user]So?</s>" in fed(chat)
    with pytest.raises(UsageError, match="no message 99"):
        chat.quote(98)


def test_a_chat_goes_on_out_of_its_file(tmp_path: Path) -> None:
    """In the midst of a question that begins with a quote, a pinned exchange before it."""
    path = tmp_path / "talk.session"
    script = [("My cat is Miso", "Nice"), ("And?", "So."), ("Hm?", "Yes.")]

    def begun() -> tuple[Chat, Scripted]:
        chat, backend = open_chat(SinkPolicy("system"), n_ctx=160, system="Be kind.")
        answer(chat, backend, *script[0])
        chat.pin()
        for one in script[1:]:
            answer(chat, backend, *one, ends=False)
        chat.quote(0)
        return chat, backend

    def ended(chat: Chat, backend: Scripted) -> tuple[object, ...]:
        for _ in range(4):
            answer(chat, backend, "On and on?", "On it goes.")
        chat.unpin()
        return chat.messages, fed(chat), chat.stream.stats.sees, chat.stream.stats.evicted

    chat, backend = begun()
    chat.save(path)
    whole = ended(chat, backend)

    saved, cells = session.read(path), session.read_cells(path)
    assert saved.conversation
    chat, backend = open_chat(SinkPolicy(), n_ctx=160)
    restored = chat.stream.restore(saved.stream, saved.kind, cells)
    assert restored.n_evaluated == 0
    chat.resume(saved.conversation)
    assert ended(chat, backend) == whole


def test_the_prompt_of_the_thread_keeps_its_head_and_shifts_its_chat() -> None:
    """llama.cpp #3440: sections of a prompt, of which only the chat may go."""
    source = (
        "#meta\nA chat between a user and an assistant.\n"
        "{% if messages[0].role == 'system' %}#system\n{{ messages[0].content }}\n{% endif %}"
        "#chat\n"
        "{% for message in messages %}{% if message.role == 'user' %}User: {{ message.content }}\n"
        "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
    )
    backend = Scripted(400)
    stream = Stream(backend, SinkPolicy("system", "turn"), 200)
    chat = Chat(stream, ChatTemplate(source, {}), "Be kind.")
    for n in range(30):
        answer(chat, backend, f"Question {n}?", "It is so.", ends=False)
    head = "<s>#meta\nA chat between a user and an assistant.\n#system\nBe kind.\n#chat\n"
    text = fed(chat).decode()
    assert text.startswith(head + "User: Question ")
    assert stream.stats.pinned == len(head) - len("<s>") + 1
    assert text.count("<s>") == 1
    assert "Question 29" in text
    chat.change_system("Be a pirate.")
    assert fed(chat).decode().startswith(head.replace("kind", "a pirate"))
