"""What a registry's entry says of a model, where it makes no sense for a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsink import SinkPolicy
from streamsink.cli.options import PolicyOptions
from streamsink.cli.values import usual_ctx
from streamsink.errors import UsageError
from streamsink.registry.catalog import user_registry
from streamsink.registry.files import entry_for

USUAL = {True: SinkPolicy("system", 1), False: SinkPolicy(4, 1)}
"""What a chat keeps by itself, and what all else."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSINK_HOME", str(tmp_path))


def policy_of(entry: str, *, chat: bool, **options: object) -> SinkPolicy:
    """The policy of a command on a model whose entry says this."""
    user_registry().parent.mkdir(exist_ok=True)
    user_registry().write_text(f"[m]\npath = '/m.gguf'\n{entry}\n")
    asked = PolicyOptions(**options)  # type: ignore[arg-type]
    policy = asked.policy("m", chat=chat)
    policy.check(asked.ctx if asked.ctx is not None else usual_ctx(entry_for("m")))
    return policy


@pytest.mark.parametrize(
    ("entry", "chat", "expected"),
    [
        ("", True, USUAL[True]),
        ("", False, USUAL[False]),
        ("keep = 'system'", True, SinkPolicy("system", 1)),
        ("keep = 'system'", False, USUAL[False]),
        ("discard = 'turn'", True, SinkPolicy("system", "turn")),
        ("discard = 'turn'", False, USUAL[False]),
        ("discard = 'sentence'", True, SinkPolicy("system", "sentence")),
        ("discard = 'sentence'", False, SinkPolicy(4, "sentence")),
        ("keep = -1", False, SinkPolicy(-1, 1)),
        ("keep = 9\ndiscard = 'half'", False, SinkPolicy(9, "half")),
        ("keep = 'system'\ndiscard = 64", False, SinkPolicy(4, 64)),
        ("keep = 4000", False, USUAL[False]),  # of 2,048
        ("n_ctx = 8192\nkeep = 4000", False, SinkPolicy(4000, 1)),
        ("n_ctx = 64\nkeep = 64\ndiscard = 61", True, SinkPolicy("system", 61)),
        ("n_ctx = 64\nkeep = 64\ndiscard = 61", False, USUAL[False]),
    ],
)
def test_an_entry_is_followed_where_it_makes_sense(
    entry: str, chat: bool, expected: SinkPolicy
) -> None:
    assert policy_of(entry, chat=chat) == expected


def test_an_entry_gives_way_to_what_was_asked_for() -> None:
    assert policy_of("keep = 600\ndiscard = 200", chat=False, ctx=512) == SinkPolicy(4, 200)
    assert policy_of("keep = 300\ndiscard = 300", chat=False, ctx=512) == SinkPolicy(300, 1)
    assert policy_of("keep = 9", chat=False, discard="505", ctx=512) == SinkPolicy(4, 505)
    assert policy_of("keep = 9", chat=False, keep="5", discard="7") == SinkPolicy(5, 7)
    assert policy_of("keep = 9", chat=False, slack=3, placement="rotate") == SinkPolicy(
        9, 1, "rotate", 3
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "600", "ctx": 512}, "n_keep=600 leaves no window"),
        ({"keep": "many"}, "--keep many is not possible"),
        ({"discard": "-2"}, "n_discard=-2"),
        ({"ctx": 0}, "n_ctx=0"),
    ],
)
def test_what_was_asked_for_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        policy_of("keep = 9\ndiscard = 'turn'", chat=True, **options)
