"""Work that may die, in a process of its own."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import psutil
import pytest

from streamsink.errors import UsageError
from streamsink.system.child import Child, Died, ask
from streamsink.system.serve import Answer, serve

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


def test_what_kills_a_child_kills_the_next_one_too() -> None:
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


@pytest.mark.parametrize(
    "what", ["tempfile.TemporaryFile", "streamsink.system.child.start_new_thread"]
)
def test_without_files_or_threads(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("too many open files") if "file" in what else RuntimeError("no new thread")

    monkeypatch.setattr(what, fail)
    before = processes()
    with pytest.raises(Died, match=r"no process can be started: (too many|no new)"):
        Child(HERE)
    assert processes() == before


def processes() -> set[int]:
    """Children of this process, those included that nobody has waited for."""
    return {process.pid for process in psutil.Process().children()}


def test_nothing_is_left_behind() -> None:
    child = Child(HERE)
    process = child._process
    assert process
    popen = process._popen
    del child, process
    assert popen.returncode is not None


ECHO = "tests.echo"


def heard(child: Child, text: str, **more: object) -> Answer:
    return child.ask({"text": text, **more}, seconds=30)


def test_threads_get_their_own_answers() -> None:
    with Child(ECHO) as child:

        def ask(name: str) -> bool:
            said = [f"{name} {at} {'x' * (at % 7 * 9000)}" for at in range(200)]
            return [heard(child, text)["heard"] for text in said] == said

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, "abcd"))


def test_one_that_dies_takes_no_other_thread_with_it() -> None:
    with Child(ECHO) as child:

        def ask(name: str) -> int:
            n_died = 0
            for at in range(8):
                if name == "a" and at % 4 == 1:
                    with pytest.raises(Died, match="exit code 4"):
                        heard(child, "last words", dies=True)
                    n_died += 1
                assert heard(child, f"{name}{at}")["heard"] == f"{name}{at}"
            return n_died

        with ThreadPoolExecutor(3) as pool:
            assert [*pool.map(ask, "abc")] == [2, 0, 0]


def test_one_that_was_killed_while_it_had_nothing_to_do() -> None:
    with Child(ECHO) as child:
        first = heard(child, "a")
        os.kill(first["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while child._process and child._process.lives and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard(child, "b")["heard"] == "b"


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_after_an_interruption_at_any_moment_the_next_answer_is_its_own() -> None:
    rng = random.Random(7)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    n_interrupted = 0
    with Child(ECHO) as child:
        heard(child, "first")
        for at in range(40):
            begun = time.monotonic()
            try:
                # Half of them while it begins, while it is asked or while it answers.
                signal.setitimer(
                    signal.ITIMER_REAL, rng.choice([2e-5, 2e-4, 2e-3, 0.2]) * rng.random()
                )
                try:
                    for again in count():
                        assert time.monotonic() - begun < 5
                        more = {"seconds": 0.05} if at % 3 == 0 else {}
                        text = f"{at} {again} {'x' * 70_000 * (at % 2)}"
                        assert heard(child, text, **more)["heard"] == text
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                n_interrupted += 1
            assert heard(child, f"after {at}")["heard"] == f"after {at}"
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert n_interrupted == 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_begins_a_process_of_its_own_and_leaves_ours_alone() -> None:
    with Child(ECHO) as child:
        ours = heard(child, "a")["pid"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; it calls exec soon
            forked = os.fork()
        if not forked:
            try:
                theirs = heard(child, "b")
                child.close()
                os._exit(0 if theirs["heard"] == "b" and theirs["pid"] != ours else 1)
            finally:
                os._exit(2)
        assert os.waitpid(forked, 0)[1] == 0
        assert heard(child, "c") == {"heard": "c", "pid": ours}


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
def test_neither_files_nor_threads_nor_processes_pile_up() -> None:
    def n_open() -> tuple[int, int, set[int]]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), processes()

    def use(at: int) -> None:
        child = Child(ECHO)
        if at % 3 == 0:
            heard(child, "x")
        if at % 3 == 1:
            with pytest.raises(Died):
                heard(child, "x", dies=True)
        if at % 2:
            child.close()
            with pytest.raises(Died, match="closed"):
                heard(child, "x")

    use(0)
    before = n_open()
    for at in range(50):
        use(at)
    deadline = time.monotonic() + 10
    while n_open() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert n_open() == before


def test_a_child_does_not_outlive_its_parent() -> None:
    program = (
        f"from streamsink.system.child import Child; child = Child({ECHO!r});"
        "print(child.ask({'text': ''}, seconds=30)['pid'], flush=True);"
        "child.ask({'text': '', 'seconds': 60}, seconds=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(pid)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no such signal")
def test_one_that_does_not_even_read() -> None:
    with Child(ECHO) as child:
        os.kill(heard(child, "x")["pid"], signal.SIGSTOP)
        with pytest.raises(Died, match="no answer"):
            child.ask({"text": "x" * 10**7}, seconds=0.5)
        assert heard(child, "y")["heard"] == "y"


if __name__ == "__main__":
    serve(answer)
