"""Work that may die, in a process of its own."""

import os
import sys
import time
from pathlib import Path

import pytest

from streamsink.child import Answer, Child, Died, ask, serve
from streamsink.errors import UsageError

HERE = "tests.test_child"


def answer(request: Answer) -> Answer:
    """What the child does, see the bottom of this file."""
    what = request["do"]
    if what == "refuse":
        raise UsageError("not like this")
    if what == "abort":
        print("GGML_ASSERT(a == b) failed\nsome more", file=sys.stderr, flush=True)
        os.abort()
    if what == "leave":
        os._exit(3)
    if what == "sleep":
        time.sleep(60)
    if what == "grow":
        return {"n": len(bytearray(2**30))}
    print("a line that is no answer")
    return {"sum": sum(request["numbers"])}


def test_answers_one_after_another() -> None:
    with Child(HERE) as child:
        for numbers in ([1, 2], [3, 4]):
            found = child.ask({"do": "add", "numbers": numbers}, seconds=30)
            assert found == {"sum": sum(numbers)}


def test_its_errors_are_ours() -> None:
    with Child(HERE) as child:
        with pytest.raises(UsageError, match="not like this"):
            child.ask({"do": "refuse"}, seconds=30)
        assert child.ask({"do": "add", "numbers": [1]}, seconds=30) == {"sum": 1}


def test_an_abort_is_told_by_what_failed() -> None:
    with pytest.raises(Died, match=r"SIGABRT: GGML_ASSERT\(a == b\) failed"):
        ask(HERE, {"do": "abort"}, seconds=30)


def test_one_that_leaves() -> None:
    with pytest.raises(Died, match="exit code 3"):
        ask(HERE, {"do": "leave"}, seconds=30)


def test_one_that_takes_too_long_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(Died, match="no answer within 1 s"):
        ask(HERE, {"do": "sleep"}, seconds=1)
    assert time.monotonic() - begun < 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are kept on Linux")
def test_one_that_takes_too_much_is_ended() -> None:
    with pytest.raises(Died, match="MemoryError"):
        ask(HERE, {"do": "grow"}, seconds=30, n_bytes=2**29)
    assert ask(HERE, {"do": "grow"}, seconds=30) == {"n": 2**30}


def test_a_child_that_died_stays_dead() -> None:
    with Child(HERE) as child:
        for _ in range(2):
            with pytest.raises(Died):
                child.ask({"do": "abort"}, seconds=30)


def test_modules_of_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "runpy", "numpy", "streamsink", "tests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    assert ask(HERE, {"do": "add", "numbers": [2, 3]}, seconds=30) == {"sum": 5}


def test_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Died, match="no process can be started"):
        ask(HERE, {"do": "leave"}, seconds=30)


def test_nothing_is_left_behind() -> None:
    child = Child(HERE)
    process = child._process
    del child
    assert process.poll() is not None


if __name__ == "__main__":
    serve(answer)
