"""Sessions in one another's way: locks, links, names, and what is no file."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamsink import session
from streamsink.chat.chat import Chat
from streamsink.core.events import Event
from streamsink.core.policy import SinkPolicy
from streamsink.errors import ModelError, SessionError, StreamsinkError, UsageError
from streamsink.gguf.fingerprint import Fingerprint
from streamsink.gguf.reader import read_header
from streamsink.llama.weights import Weights
from streamsink.model import Model
from streamsink.session import shelf
from streamsink.system.atomic import clear_away, replacing, write_text
from tests.conftest import Run
from tests.talks import keeping, said, say, without_cuts
from tests.test_cli import STREAMSINK
from tests.test_cli_sessions import CHAT
from tests.tiny_gguf import TinyModel

pytestmark = pytest.mark.usefixtures("at_home")


# -- one file, one lock --------------------------------------------------------------------------


def ways_to(file: Path, here: Path) -> dict[str, Path]:
    """Paths that lead to a file."""
    (here / "link").symlink_to(file)
    (here / "link of a link").symlink_to(here / "link")
    (here / "folder").symlink_to(file.parent)
    return {
        "itself": file,
        "a link": here / "link",
        "a link of a link": here / "link of a link",
        "a folder's link": here / "folder" / file.name,
        "up and down": file.parent / ".." / file.parent.name / file.name,
        "from here": Path(os.path.relpath(file)),
        "up from a link": here / "folder" / ".." / file.parent.name / file.name,
    }


@pytest.mark.parametrize("is_there", [True, False])
def test_all_ways_to_a_file_have_one_lock(at_home: Path, tmp_path: Path, is_there: bool) -> None:
    file = tmp_path / "talks" / "a"
    file.parent.mkdir()
    if is_there:
        file.write_bytes(b"one")
    for way, path in ways_to(file, at_home).items():
        kept = shelf.take(path)
        for other_way, other in ways_to_again(file, at_home).items():
            assert kept.is_at(other), (way, other_way)
            with pytest.raises(SessionError, match="is in use"):
                shelf.take(other)
        with replacing(path) as new:  # as at every save
            new.write(b"two")
        with pytest.raises(SessionError, match="is in use"):
            shelf.take(file)
        assert not kept.is_at(tmp_path / "talks" / "b")
        kept.release()
        kept.release()
        shelf.take(path).release()
        assert list(file.parent.iterdir()) == [file]


def ways_to_again(file: Path, here: Path) -> dict[str, Path]:
    for link in ("link", "link of a link", "folder"):
        (here / link).unlink()
    return ways_to(file, here)


def test_a_lock_that_was_removed_is_taken_again_or_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    kept = shelf.take(folder / "a")
    (folder / ".a.lock").unlink()
    other = shelf.take(folder / "a")
    with pytest.raises(SessionError, match="is in use"):
        kept.renew()
    other.release()
    kept = kept.renew()
    with pytest.raises(SessionError, match="is in use"):
        shelf.take(folder / "a")
    shutil.rmtree(folder)
    with pytest.raises(SessionError, match="cannot be kept there"):
        kept.renew()
    folder.mkdir()
    kept.renew().release()


def test_a_second_chat_through_a_link_is_refused(
    run: Run,
    tiny_path: Path,
    environment: dict[str, str],
    at_home: Path,
    home: Path,
) -> None:
    run("chat", str(tiny_path), *CHAT, "--session", "a", given="One.\n")
    file = home / "sessions" / "a.session"
    (at_home / "link").symlink_to(file)
    os.link(file, at_home / "hard")
    with talking(tiny_path, environment, "--session", "a") as first:
        first("Two.\n")
        for name in ("./link", "../home/sessions/a.session"):
            done = run("chat", "--session", name, given="Three.\n")
            assert done.returncode == 1
            assert "is in use" in done.stderr
        saved = run(
            "chat",
            str(tiny_path),
            *CHAT,
            given="Four.\n/save ./link\n/load a\nFive.\n/reset\n/load a\n",
        )
        assert saved.returncode == 1
        assert saved.stderr.count("is in use") == 2
        deleted = run("sessions", "delete", "a", "--yes")
        assert "is in use" in deleted.stderr
        assert "**You**\n\nTwo." in run("sessions", "export", "a").stdout
        # A hard link is a file of its own once either was saved.
        run("chat", "--session", "./hard", "--max-tokens", "4", given="Other.\n")
        first("Six.\n")
    assert said(file) == ["One.", "Two.", "Six."]
    assert said(at_home / "hard") == ["One.", "Other."]
    assert (at_home / "link").is_symlink()
    assert run("sessions", "delete", "./link", "--yes").returncode == 0
    assert not file.exists()


@contextlib.contextmanager
def talking(
    path: Path,
    environment: dict[str, str],
    *options: str,
) -> Iterator[Callable[[str], None]]:
    """A chat that goes on meanwhile; the function says something and waits for the answer."""
    with subprocess.Popen(
        [*STREAMSINK, "chat", str(path), *CHAT, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdin
        assert process.stdout

        def say(text: str) -> None:
            assert process.stdin
            assert process.stdout
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline()

        yield say
        process.stdin.close()
        process.stdout.read()
    assert process.returncode == 0


def test_drafts_of_the_living_are_left_alone(tmp_path: Path) -> None:
    dead = tmp_path / ".talk.abcdefgh.draft"
    dead.write_bytes(b"half")
    with replacing(tmp_path / "talk") as file:
        file.write(b"whole")
        clear_away(tmp_path / "talk")
        assert not dead.exists()
        shelf.take(tmp_path / "talk").release()
    assert (tmp_path / "talk").read_bytes() == b"whole"


def test_many_threads_saving_into_one_file(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    errors: list[BaseException] = []

    def save(n: int) -> None:
        try:
            with model.stream(SinkPolicy(4, 1), 64) as stream:
                stream.feed(range(10, 20 + n))
                for _ in range(15):
                    stream.save(path)
                    session.read_cells(path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with model.restore(path) as stream:
        assert stream.restored
        assert stream.restored.n_evaluated == 0
    assert list(tmp_path.glob(".*")) == []


def test_record_and_cells_are_of_one_moment(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with model.stream(SinkPolicy(4, 1), 64) as stream:
        stream.feed(range(10, 20))
        stream.save(path)
        with session.SessionFile(path) as file:
            stream.feed(range(20, 50))
            stream.save(path)
            cells = file.cells()
            assert cells
            done = stream.restore(file.session.stream, file.session.kind, cells)
        assert done.n_evaluated == 0
        assert stream.stats.index == 10


def test_a_save_is_told_though_another_thread_uses_the_stream(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    stream = model.stream(SinkPolicy(4, 1), 64, on_event=events.append)
    stream.feed(range(10, 30))
    steps = stream.generate(40, ignore_eos=True)
    under_way, enough = threading.Event(), threading.Event()

    def slowly(*_: Any) -> None:
        with stream._alone:
            under_way.set()
            enough.wait(30)

    other = threading.Thread(target=slowly)
    write = session.write

    def write_meanwhile(*given: Any) -> None:
        write(*given)
        other.start()
        under_way.wait(30)

    monkeypatch.setattr(session, "write", write_meanwhile)
    next(steps)
    stream.save(tmp_path / "talk")
    enough.set()
    other.join()
    assert [(event.kind, event.index) for event in events] == [("save", 21)]
    stream.close()


# -- what is no file -----------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "socket", "folder", "zeros", "full", "disk", "loop"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "thing"
    devices = {
        "zeros": (stat.S_IFCHR, 1, 5),
        "full": (stat.S_IFCHR, 1, 7),
        "disk": (stat.S_IFBLK, 7, 9),
    }
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "loop":
        path.symlink_to(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        kind, major, minor = devices[request.param]
        try:
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
        except OSError:
            pytest.skip("only root makes devices")
    return path


def test_only_files_are_read_and_replaced(no_file: Path, chat: Chat, model: Model) -> None:
    before = no_file.lstat()
    say(chat, "Hi")

    link = no_file.with_name("link")
    link.symlink_to(no_file)
    calls: list[Callable[[Path], object]] = [
        session.read, model.restore, read_header, shelf.take, keeping(chat).save_as, chat.save,
    ]  # fmt: skip
    for path in (no_file, link):
        for call in calls:
            with pytest.raises(StreamsinkError) as caught:
                call(path)
            assert "\n" not in str(caught.value)
            assert str(path) in str(caught.value)
        with pytest.raises(OSError, match=r"not a file|Too many levels"):
            write_text(path, "text")
    after = no_file.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (
        before.st_ino,
        before.st_mode,
        before.st_rdev,
    )
    assert sorted(file.name for file in no_file.parent.iterdir() if file.name[0] == ".") == []


def test_a_chat_on_what_is_no_file_ends_at_once(
    run: Run,
    tiny_path: Path,
    at_home: Path,
    home: Path,
) -> None:
    os.mkfifo("pipe.session")
    (home / "sessions").mkdir(parents=True)
    os.mkfifo(home / "sessions" / "p.session")
    for command in (
        ("chat", str(tiny_path), "--session", "./pipe.session"),
        ("sessions", "show", "p"),
        ("sessions", "delete", "p", "--yes"),
    ):
        done = run(*command, given="Hi\n")
        assert done.returncode == 1, command
        assert len(done.stderr.splitlines()) == 1
    assert run("sessions").stdout == ""
    given = "Hi\n/load ./pipe.session\n/reset\n/load p\n/save ./pipe.session\n"
    done = run("chat", str(tiny_path), *CHAT, given=given)
    assert "saved nowhere" in done.stderr
    assert done.stderr.count("it is a pipe, not a file") == 2
    model = run("chat", "./pipe.session")
    assert model.returncode == 2
    assert stat.S_ISFIFO(os.stat("pipe.session").st_mode)


def test_paths_that_lead_nowhere(chat: Chat, at_home: Path) -> None:
    """Whether or not the chat has a file of its own by then."""
    say(chat, "Hi")
    (at_home / "file").write_text("text")
    (at_home / "dangling").symlink_to(at_home / "none" / "a")
    for conversation in (keeping(chat), keeping(chat, "a")):
        for name in (
            "/",
            "./file/a",
            "./none/a",
            f"./{'x' * 250}",
            f"./{'x/' * 3000}",
            "./dangling",
        ):
            path = shelf.locate(name)
            with pytest.raises(SessionError, match="cannot be kept there"):
                conversation.save_as(path)
            with pytest.raises(StreamsinkError):
                conversation.load(path, lambda: None)
        conversation.let_go()
    assert [turn.text for turn in chat.messages][:1] == ["Hi"]


def test_nobodys_own_file_is_overwritten(chat: Chat, at_home: Path) -> None:
    say(chat, "Hi")
    notes = at_home / "notes.txt"
    notes.write_text("My notes.")
    with pytest.raises(UsageError, match=r"is not overwritten.*take another name"):
        keeping(chat).save_as(notes)
    assert notes.read_text() == "My notes."
    (at_home / "to.txt").symlink_to(at_home / "new.session")
    keeping(chat).save_as(at_home / "to.txt")
    assert said(at_home / "new.session") == ["Hi"]


def test_an_export_does_not_replace_its_session(
    run: Run,
    tiny_path: Path,
    at_home: Path,
) -> None:
    run("chat", str(tiny_path), *CHAT, "--session", "./a", given="Hi\n")
    (at_home / "link").symlink_to("a")
    done = run("sessions", "export", "./a", "--out", "link")
    assert done.returncode == 2
    assert "is a session" in done.stderr
    assert said(at_home / "a") == ["Hi"]


# -- the model's file ----------------------------------------------------------------------------


def test_a_session_is_of_the_model_that_was_loaded(tiny_path: Path, tmp_path: Path) -> None:
    """Whatever has its name by now."""
    path, conversation = tmp_path / "model.gguf", tmp_path / "talk"
    path.write_bytes(tiny_path.read_bytes())
    other = TinyModel.create(seed=5).write(tmp_path / "other.gguf")
    with Model(Weights(path)) as model, model.stream(SinkPolicy(4, 1), 64) as stream:
        stream.feed(range(10, 30))
        other.replace(path)
        stream.save(conversation)
    with Model(Weights(tiny_path)) as model, model.restore(conversation) as stream:
        assert stream.restored
        assert stream.restored.n_evaluated == 0
    with Model(Weights(path)) as model, pytest.raises(SessionError, match="of another model"):
        model.restore(conversation)


def test_a_model_that_is_replaced_while_it_is_opened(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_path.read_bytes())
    header = read_header(path)
    TinyModel.create(seed=5).write(tmp_path / "other.gguf").replace(path)
    with pytest.raises(ModelError, match="was replaced while it was being opened"):
        Weights(path, header=header)
    taken = Fingerprint.of

    def replaced(header: Any) -> Fingerprint:
        found = taken(header)
        path.with_name("again.gguf").write_bytes(tiny_path.read_bytes())
        path.with_name("again.gguf").replace(path)
        return found

    monkeypatch.setattr(Fingerprint, "of", replaced)
    with pytest.raises(ModelError, match="was replaced while it was being opened"):
        Weights(path)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["v1.2", "Mr. Smith", "a", "a b-c_d", "Ärger", "日本", "a,b", "it's", "-x", "a=b", "1.0.0"],
)
def test_a_word_is_a_name(chat: Chat, name: str) -> None:
    assert shelf.locate(name).parent == shelf.folder()
    keeping(chat, name).save()
    assert [path.stem for path in shelf.files()] == [name]
    assert shelf.name_of(shelf.locate(name)) == name


def test_what_has_a_folder_or_an_ending_is_a_file() -> None:
    for name in ("./a", "a/b", "/a", "../v1.2", "a.session"):
        assert shelf.locate(name) == Path(name)
    assert shelf.locate("~/a") == Path.home() / "a"
    assert shelf.locate("~nobody-at-all/a") == Path("~nobody-at-all/a")


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "a\nb", "a\x1b[2J", "a\x00b", "\u202eabc", "\udcff"),
        *(".", "..", ".a", "a.", " a", "a ", "a:b", "a\\b", "a*", "a?", 'a"', "<a>", "a|b"),
        *("con", "NUL", "aux.txt", "Com1", "lpt9.x", "x" * 300, "日" * 90),
    ],
)
def test_what_cannot_be_a_files_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        shelf.locate(name)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_under_a_name_of_once_is_not_passed_over(chat: Chat, at_home: Path) -> None:
    """Names with dots were files in the current folder."""
    keeping(chat).save_as(at_home / "v1.2")
    with pytest.raises(UsageError, match=r"\./v1\.2 is that file"):
        shelf.locate("v1.2")
    keeping(chat).save_as(at_home / "plain")
    assert shelf.locate("plain").parent == shelf.folder()
    (at_home / "Mr. Smith").write_text("something else")
    assert shelf.locate("Mr. Smith").parent == shelf.folder()
    (at_home / "v1.2").rename(at_home / "v1.3")
    keeping(chat, "v1.2").save()
    (at_home / "v1.3").rename(at_home / "v1.2")
    assert shelf.locate("v1.2").parent == shelf.folder()


def test_names_reach_the_commands(run: Run, tiny_path: Path, at_home: Path) -> None:
    done = run("chat", str(tiny_path), *CHAT, "--session", "Mr. Smith", given="Hi\n/save v1.2\n")
    assert done.returncode == 0, done.stderr
    listed = [line.split("\t")[0] for line in run("sessions").stdout.splitlines()]
    assert sorted(listed) == ["Mr. Smith", "v1.2"]
    assert list(at_home.iterdir()) == []
    done = run("chat", str(tiny_path), *CHAT, given="Hi\n/save a\x00b\n/load x:y\n/save NUL\n")
    assert done.returncode == 2
    assert done.stderr.count("streamsink: ") == 3


# -- other errors --------------------------------------------------------------------------------


def test_a_context_of_nothing_is_refused(run: Run, tiny_path: Path, at_home: Path) -> None:
    with Model(Weights(tiny_path)) as model:
        with model.stream(SinkPolicy(4, 1), 64) as stream:
            stream.feed(range(10, 20))
            stream.save(at_home / "a")
        with pytest.raises(UsageError, match="n_ctx=0 is not possible"):
            model.restore(at_home / "a", n_ctx=0)
    done = run("chat", str(tiny_path), "--session", "./a", "--ctx", "0", given="Hi\n")
    assert done.returncode == 2
    assert "--ctx 0 is not possible" in done.stderr


def test_a_reader_that_goes_away_is_no_fault_of_the_session(
    tiny_path: Path,
    environment: dict[str, str],
    home: Path,
) -> None:
    process = subprocess.Popen(
        [*STREAMSINK, "chat", str(tiny_path), *CHAT, "--session", "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"One.\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"Two.\n" * 50)
        process.stdin.close()
    assert without_cuts(process.stderr.read().decode()) == []
    assert process.wait(60) != 0
    assert said(home / "sessions" / "a.session")[0] == "One."
    shelf.take(shelf.locate("a")).release()


def test_a_folder_that_went_away(
    run: Run,
    tiny_path: Path,
    at_home: Path,
    environment: dict[str, str],
) -> None:
    (at_home / "talks").mkdir()
    with subprocess.Popen(
        [*STREAMSINK, "chat", str(tiny_path), *CHAT, "--session", "talks/a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("One.\n")
        process.stdin.flush()
        process.stdout.readline()
        shutil.rmtree(at_home / "talks")
        _, told = process.communicate("Two.\n", 60)
    assert process.returncode == 1
    (line,) = without_cuts(told)
    assert "cannot be kept there: No such file" in line
