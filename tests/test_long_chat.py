"""Two hundred turns with the default model, and a fact that was pinned at the third."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsink.chat import Chat
from streamsink.model import Model
from streamsink.policy import SinkPolicy
from streamsink.sampling import Sampling
from streamsink.template import ChatTemplate
from tests.test_cli import default_model  # noqa: F401

N_CTX = 384
FACT = "Remember this: the password of the lighthouse is Pelican."
QUESTION = "What is the password of the lighthouse?"
GREEDY = Sampling(temperature=0)


def said(chat: Chat, text: str, n: int = 24) -> str:
    return "".join(step.text for step in chat.say(text, n, sampling=GREEDY))


@pytest.mark.slow
@pytest.mark.parametrize("n_discard", [1, "turn"])
def test_what_was_pinned_is_known_at_the_end(n_discard: int, default_model: str) -> None:  # noqa: F811
    with (
        Model.open(Path(default_model)) as model,
        model.stream(SinkPolicy("system", n_discard), N_CTX) as stream,
    ):
        template = ChatTemplate(model.chat_template, model.special_texts)
        chat = Chat(stream, template, "You are a helpful assistant.")
        for turn in range(1, 200):
            if turn == 3:
                said(chat, FACT)
                chat.pin()
            else:
                said(chat, f"Tell me something about the number {turn}.")
        assert chat.memory(chat.turns[4]) == "pinned"
        assert chat.memory(chat.turns[0]) == "forgotten"
        assert stream.stats.evicted > 10 * N_CTX
        assert "Pelican" in said(chat, QUESTION)
        assert len(chat.turns) == 400
        chat.unpin()
        for _ in range(8):
            said(chat, "Tell me a joke.")
        assert chat.memory(chat.turns[4]) == "forgotten"
        assert "Pelican" not in stream.text(stream.visible_tokens())
