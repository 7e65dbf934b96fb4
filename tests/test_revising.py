"""Turns taken back, answered anew, gone on with, and moved to another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.chat.template import ChatTemplate
from streamsink.core.policy import SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import UsageError
from streamsink.model import Model
from tests.test_chat import SOURCE, Scripted, answer, fed, open_chat
from tests.zoo import FAMILIES


def texts(chat: Chat) -> list[str]:
    return [message.text for message in chat.messages]


def said(chat: Chat, backend: Scripted, steps: Any, says: str, *, ends: bool = True) -> str:
    backend.says(says, ends=ends)
    return "".join(step.text for step in steps)


# -- as if it had not been said -------------------------------------------------------------------


def test_what_is_undone_was_never_said() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    other, told = open_chat(SinkPolicy("system"), system="Be kind.")
    for at in range(3):
        answer(chat, backend, f"On {at}?", f"It goes {at}.")
        answer(other, told, f"On {at}?", f"It goes {at}.")
    answer(chat, backend, "A slip?", "Of the tongue.")
    assert chat.undo() == "A slip?"
    assert texts(chat) == texts(other)
    answer(chat, backend, "And?", "So.")
    answer(other, told, "And?", "So.")
    assert fed(chat) == fed(other)
    assert chat.conversation() == other.conversation()


def test_all_turns_can_be_undone_and_no_more() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    for text in ("One?", "Two?", "Three?"):
        answer(chat, backend, text, "Yes.")
    assert [chat.undo() for _ in range(3)] == ["Three?", "Two?", "One?"]
    assert (chat.messages, fed(chat)) == ([], b"")
    with pytest.raises(UsageError, match="nothing was asked"):
        chat.undo()
    answer(chat, backend, "Hi", "Ho")
    assert fed(chat) == b"<s>[system]Be kind.</s>[user]Hi</s>[assistant]Ho</s>"


@pytest.mark.parametrize("since", ["nothing", "cut off", "pinned", "quoted"])
def test_the_last_question_answered_anew(since: str) -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "One?", "It is one.")
    answer(chat, backend, "Two?", "It is three", ends=since != "cut off")
    if since == "pinned":
        chat.pin()
        with pytest.raises(UsageError, match="pinned"):
            chat.retry()
        chat.unpin()
    elif since == "quoted":
        chat.quote(0)
    assert said(chat, backend, chat.retry(), "It is two.") == "It is two."
    answer(chat, backend, "And?", "So.")
    assert fed(chat).endswith(
        b"[user]Two?</s>[assistant]It is two.</s>[user]And?</s>[assistant]So.</s>"
    )
    assert texts(chat)[2:4] == ["Two?", "It is two."]
    assert b"three" not in fed(chat)
    assert b"Earlier" not in fed(chat)


def test_another_question_in_place_of_the_last() -> None:
    chat, backend = open_chat(SinkPolicy("system"), system="Be kind.")
    answer(chat, backend, "One?", "It is one.")
    said(chat, backend, chat.edit("First?"), "It is first.")
    answer(chat, backend, "Two?", "It is two.")
    said(chat, backend, chat.edit("Second?"), "It is second.")
    assert texts(chat) == ["First?", "It is first.", "Second?", "It is second."]
    chat.stream.feed(())
    assert fed(chat).decode() == (
        "<s>[system]Be kind.</s>[user]First?</s>[assistant]It is first.</s>"
        "[user]Second?</s>[assistant]It is second.</s>"
    )


@pytest.mark.parametrize("n_keep", [0, 4, "system"])
@pytest.mark.parametrize("call", ["undo", "retry", "edit"])
def test_a_turn_that_was_longer_than_the_window(call: str, n_keep: Any) -> None:
    """Nothing is left of what stood before it, and what comes next follows what is pinned."""
    chat, backend = open_chat(SinkPolicy(n_keep), n_ctx=64, system="Be kind.")
    answer(chat, backend, "One?", "It is one.")
    answer(
        chat, backend, "Long?", "On and on it goes, for ever and a day, and then some, amen. Yes"
    )
    if call == "undo":
        chat.undo()
        answer(chat, backend, "And?", "So.")
    else:
        steps = chat.retry() if call == "retry" else chat.edit("And?")
        said(chat, backend, steps, "So.")
    question = b"Long?" if call == "retry" else b"And?"
    chat.stream.feed(())
    assert fed(chat).endswith(b"[user]" + question + b"</s>[assistant]So.</s>")
    assert b"amen" not in fed(chat)
    assert texts(chat) == ["One?", "It is one.", question.decode(), "So."]
    assert [chat.memory(one) for one in chat.messages[2:]] == ["visible"] * 2


# -- gone on with ---------------------------------------------------------------------------------


def test_an_answer_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    answer(chat, backend, "Count.", "One two", ends=False)
    old = chat.go_on()
    assert said(chat, backend, chat.go_on(max_tokens=6), " three", ends=False) == " three"
    with pytest.raises(UsageError, match="over"):
        next(old)
    chat.save(tmp_path / "a.session")
    assert said(chat, backend, chat.go_on(), " four.") == " four."
    assert texts(chat) == ["Count.", "One two three four."]
    with pytest.raises(UsageError, match="complete"):
        chat.go_on()
    answer(chat, backend, "And?", "So.")
    assert b"[assistant]One two three four.</s>[user]And?" in fed(chat)

    saved = session.read(tmp_path / "a.session")
    again, told = open_chat(SinkPolicy("system"))
    again.restore(saved, session.read_cells(tmp_path / "a.session"))
    assert said(again, told, again.go_on(), " and four.") == " and four."
    assert texts(again) == ["Count.", "One two three and four."]
    answer(again, told, "And?", "So.")
    assert b"[assistant]One two three and four.</s>[user]And?" in fed(again)


def test_what_does_not_go_on() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    with pytest.raises(UsageError, match="nothing was asked"):
        chat.go_on()
    answer(chat, backend, "Count.", "One two", ends=False)
    with pytest.raises(UsageError, match="grammar"):
        chat.go_on(sampling=Sampling(grammar='root ::= "a"'))
    chat.pin()
    with pytest.raises(UsageError, match="past"):
        chat.go_on()


# -- settings -------------------------------------------------------------------------------------


def test_settings_change_together_or_not_at_all() -> None:
    chat, _ = open_chat(SinkPolicy(4))
    chat.change(temperature=0.2, n_discard="turn", max_tokens=None, stop="Amen")
    assert (chat.sampling.temperature, chat.max_tokens, chat.stop) == (0.2, None, ("Amen",))
    assert chat.stream.policy.n_discard == "turn"
    before = chat.sampling, chat.max_tokens, chat.stop, chat.stream.policy
    for bad in (
        {"temperature": -1, "n_keep": 8},
        {"temperature": 1, "n_keep": 4000},
        {"max_tokens": 0, "top_k": 1},
        {"colour": "red", "top_k": 1},
    ):
        with pytest.raises(UsageError):
            chat.change(**bad)
        assert (chat.sampling, chat.max_tokens, chat.stop, chat.stream.policy) == before


def test_settings_are_those_of_every_answer() -> None:
    chat, backend = open_chat(SinkPolicy("system"))
    chat.change(max_tokens=3, stop="n")
    assert answer_by_settings(chat, backend, "One and two") == "O"
    chat.change(stop=())
    assert answer_by_settings(chat, backend, "One and two") == "One"
    assert said(chat, backend, chat.retry(max_tokens=None), "One and two") == "One and two"
    with pytest.raises(UsageError, match="switch"):
        chat.think(True)


def answer_by_settings(chat: Chat, backend: Scripted, says: str) -> str:
    return said(chat, backend, chat.say("Well?"), says)


# -- elsewhere ------------------------------------------------------------------------------------


def test_moved_to_another_model() -> None:
    """It reads what the first still saw; the rest is forgotten, and known."""
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=130, system="Be kind.")
    for at in range(8):
        answer(chat, backend, f"On {at}?", f"On it goes {at}.")
    memories = [chat.memory(one) for one in chat.messages]
    n_seen = sum(memory != "forgotten" for memory in memories)
    assert 0 < n_seen < 16
    before = texts(chat)
    other = Scripted(400)
    source = SOURCE.replace("</s>", "!</s>")
    n = chat.move_to(Stream(other, SinkPolicy("system"), 400), ChatTemplate(source, {}))
    assert n == chat.stream.stats.index
    assert texts(chat) == before
    now = [chat.memory(one) for one in chat.messages]
    assert [memory == "forgotten" for memory in now] == [m == "forgotten" for m in memories]
    answer(chat, other, "Still there?", "Yes.")
    assert fed(chat).startswith(b"<s>[system]Be kind.!</s>[user]On ")
    assert fed(chat).endswith(b"On it goes 7.!</s>[user]Still there?!</s>[assistant]Yes.</s>")
    assert chat.undo() == "Still there?"
    assert chat.undo() == "On 7?"


def test_moved_with_what_is_pinned() -> None:
    chat, backend = open_chat(SinkPolicy("system"), n_ctx=130)
    answer(chat, backend, "A secret?", "It is 7.")
    chat.pin()
    for at in range(8):
        answer(chat, backend, f"On {at}?", f"On it goes {at}.")
    chat.move_to(Stream(Scripted(400), SinkPolicy("system"), 400), ChatTemplate(SOURCE, {}))
    assert len(chat.stream.pins) == 1
    assert [chat.memory(one) for one in chat.messages[:2]] == ["pinned"] * 2


# -- on real cells --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "lfm2"])
def test_undone_on_real_cells(name: str, tmp_path: Path) -> None:
    """What follows is foreseen as by a chat in which it was never said."""
    path = FAMILIES[name].write(tmp_path / f"{name}.gguf")
    with Model.open(path) as model:
        foreseen = []
        for slips in (False, True):
            policy = SinkPolicy("system")
            with model.stream(policy, 256, "f32", "f32", threads=1) as stream:
                chat = Chat(stream, ChatTemplate("", model.special_texts))
                chat.take_in("Hello there.", "Good day.")
                if slips:
                    chat.take_in("A slip.", "Of the tongue.")
                    chat.undo()
                chat.take_in("And then?", "All was well.")
                foreseen.append(stream.logits())
        np.testing.assert_allclose(foreseen[0], foreseen[1], atol=1e-4)
