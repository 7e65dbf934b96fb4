"""A chat in JSON lines: a message in, an answer out, for programs in any language."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from streamsink.cli import terminal
from streamsink.cli.talk.table import find
from streamsink.errors import StreamsinkError, UsageError
from streamsink.system.turns import turns

if TYPE_CHECKING:
    from streamsink.cli.talk.speaking import Spoken
    from streamsink.cli.talk.talk import Talk

FORMS = '{"content": "..."}, {"role": "system", "content": "..."} or {"command": "/..."}'
_FINISH = {"eos": "stop", "stop": "stop", "grammar": "stop", "length": "length"}


def jsonl(talk: Talk) -> None:
    """Take messages from stdin, a JSON value a line, and give a JSON object for each.

    A line that cannot be carried out is answered by an object with an ``error``, and the next is
    taken; the exit code remembers it.
    """
    code = 0
    for text in turns("\n", terminal.tell):
        if not text.strip():
            continue
        try:
            record = _carry_out(talk, text)
        except StreamsinkError as error:
            record, code = {"error": terminal.line(error.message)}, error.exit_code
        if record is None:
            break
        write(record)
    raise typer.Exit(code)


def write(record: dict[str, Any]) -> None:
    """Give out an object as one line; all that is not ASCII is escaped in it."""
    terminal.out(json.dumps(record) + "\n")


def answered(talk: Talk, spoken: Spoken) -> dict[str, Any]:
    """An answer as an object, with what it cost and what the model still sees."""
    stream = talk.chat.stream
    stats = stream.stats
    return {
        "role": "assistant",
        "content": spoken.text,
        **({"reasoning_content": spoken.thought} if spoken.thought else {}),
        "finish_reason": _FINISH[spoken.finish or "length"],
        "usage": {"prompt_tokens": spoken.n_read, "completion_tokens": spoken.n_said},
        "streamsink": {
            "n_ctx": stream.n_ctx,
            "pinned": stats.pinned,
            "recent": stats.window,
            "forgotten": stats.evicted,
            "seconds_reading": round(spoken.seconds_reading, 3),
            "seconds_saying": round(spoken.seconds_saying, 3),
        },
    }


def _carry_out(talk: Talk, text: str) -> dict[str, Any] | None:
    """What a line is answered by; None where the conversation ends."""
    said: list[str] = []

    def remark(text: str, *, dim: bool = False) -> None:
        said.append(text)

    message = _message(text)
    if "command" in message:
        command, argument = find(message["command"])
        before = talk.spoken
        after = command.do(talk, argument, remark)
        if talk.spoken and talk.spoken is not before:
            return _with_remarks(answered(talk, talk.spoken), said)
        done = {"command": message["command"], "text": "".join(said)}
        return None if after and after.leaves else done
    if message.get("role", "user") == "system":
        n_evaluated = talk.chat.change_system(message["content"])
        talk.keeping.save()
        return {"role": "system", "usage": {"prompt_tokens": n_evaluated}}
    return _with_remarks(answered(talk, talk.say(message["content"], remark)), said)


def _with_remarks(record: dict[str, Any], said: list[str]) -> dict[str, Any]:
    return {**record, "remarks": [line.strip() for line in said]} if said else record


def _message(text: str) -> dict[str, str]:
    """A line as an object of strings: a string alone is a message.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"a line is not JSON ({error}): {FORMS}") from None
    if isinstance(found, str):
        found = {"content": found}
    if isinstance(found, dict) and "prompt" in found and "content" not in found:
        found["content"] = found.pop("prompt")
    possible = (
        isinstance(found, dict)
        and all(isinstance(value, str) for value in found.values())
        and (found.keys() == {"command"} or found.keys() | {"role"} == {"role", "content"})
        and found.get("role", "user") in ("user", "system")
    )
    if not possible or found.get("command", "/")[:1] != "/":
        raise UsageError(f"a line is no message: {FORMS}")
    return dict(found)
