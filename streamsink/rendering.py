"""Runs chat templates.

A template comes out of a file and is a program. So this is run as a module, in a process with
limits (`streamsink.template`), and the template in a sandbox there.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from streamsink.child import Answer, serve
from streamsink.errors import ModelError


def answer(request: Answer) -> Answer:
    """Render ``messages`` by the template ``source``; without messages, only read it."""
    template = _template(request["source"])
    if request["messages"] is None:
        return {"text": ""}
    try:
        text = template.render(
            messages=request["messages"],
            add_generation_prompt=request["add_generation_prompt"],
            **request["special"],
        )
    except MemoryError:
        raise ModelError("the model's chat template failed: it takes too much memory") from None
    except Exception as error:  # whatever a program out of a file may raise
        raise ModelError(f"the model's chat template failed: {error}") from None
    return {"text": text}


@lru_cache(maxsize=4)
def _template(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        raise ModelError(f"the model's chat template cannot be read: {error}") from None


def _refuse(message: Any) -> NoReturn:
    raise TemplateError(str(message))


if __name__ == "__main__":
    serve(answer)
