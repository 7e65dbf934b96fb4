"""Session files: a stream that was stopped goes on as one that never was."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamsink import session
from streamsink.core.policy import Placement, SinkPolicy
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import SessionError, StreamsinkError, UsageError
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.reference import Floats
from tests.tiny_gguf import TinyModel
from tests.zoo import FAMILIES, N_VOCAB

N_CTX, N_KEEP = 48, 4
TOKENS = [int(t) for t in np.random.default_rng(4).integers(4, 290, 400)]
HOT = Sampling(temperature=1.5, seed=7, repeat_penalty=1.2, repeat_last_n=16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talk.session"


def opened(model: Model, placement: Placement = "reanchor", **settings: Any) -> Stream:
    policy = SinkPolicy(N_KEEP, settings.pop("n_discard", 1), placement, 16)
    return model.stream(policy, N_CTX, "f32", "f32", n_batch=64, **settings)


def scores(stream: Stream, tokens: list[int]) -> Floats:
    return np.asarray(stream.score(tokens))


# -- as if nothing had been ---------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["rotate", "reanchor"])
@pytest.mark.parametrize("n_fed", [0, 1, 20, N_CTX, 60, 150])
def test_a_restored_stream_goes_on_alike(
    model: Model, path: Path, placement: Placement, n_fed: int
) -> None:
    with opened(model, placement) as stream:
        stream.feed(TOKENS[:n_fed])
        stream.save(path)
        with model.restore(path) as other:
            assert other.restored
            assert other.restored.n_evaluated == 0, other.restored.why
            assert other.stats.index == stream.stats.index
            assert other.stats.positions == stream.stats.positions
            assert other.visible_tokens() == stream.visible_tokens()
            assert other.policy == stream.policy
            assert other.n_ctx == stream.n_ctx
            if n_fed:
                assert np.abs(other.logits() - stream.logits()).max() < 1e-4
            rest = TOKENS[n_fed : n_fed + 120]
            found, expected = scores(other, rest), scores(stream, rest)
            assert np.nanmax(np.abs(found - expected)) < 1e-3
            assert other.stats.evicted == stream.stats.evicted


def test_generation_goes_on_alike(model: Model, path: Path) -> None:
    """In the midst of an answer, by chance and with penalties."""
    with opened(model) as stream:
        stream.feed(TOKENS[:30])
        steps = stream.generate(80, sampling=HOT, ignore_eos=True)
        for _ in range(35):
            next(steps)
        stream.save(path)
        ours = [next(steps).token for _ in range(40)]
    with model.restore(path) as other:
        theirs = [s.token for s in other.generate(40, sampling=HOT, ignore_eos=True)]
    assert theirs == ours


def test_what_was_pinned_and_swapped_comes_back(model: Model, path: Path) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.repin(TOKENS[200:210])
        stream.pin(80, 86)
        stream.begin_turn()
        stream.save(path)
        with model.restore(path) as other:
            assert other.pins == stream.pins
            assert other.stats.pinned == 16
            assert other.visible_tokens() == stream.visible_tokens()
            for one in (stream, other):
                one.unpin()
                one.change(n_discard="turn")
            rest = TOKENS[100:180]
            assert np.abs(scores(other, rest) - scores(stream, rest)).max() < 1e-3
            assert other.stats.sees == stream.stats.sees


def test_saving_disturbs_nothing(model: Model, path: Path) -> None:
    with opened(model) as stream, opened(model) as other:
        for at in range(0, 200, 20):
            stream.save(path)
            for one in (stream, other):
                one.feed(TOKENS[at : at + 20])
        assert (stream.logits() == other.logits()).all()


def test_settings_come_back_unless_others_are_given(model: Model, path: Path) -> None:
    with model.stream(SinkPolicy(6, "half"), 40, "f32", "f16") as stream:
        stream.feed(TOKENS[:100])
        stream.save(path)
    with model.restore(path) as other:
        assert other.policy == SinkPolicy(6, "half")
        assert other.n_ctx == 40
    with model.restore(path, SinkPolicy(8, 2), 64) as other:
        assert other.policy == SinkPolicy(8, 2)
        assert other.stats.pinned == 8
        assert other.n_ctx == 64
        assert other.restored
        assert other.restored.n_evaluated == 0


@pytest.mark.parametrize("name", ["gemma3", "qwen2vl", "mpt", "deepseek2", "llama-yarn", "lfm2"])
def test_other_families(name: str, tmp_path: Path, path: Path) -> None:
    tokens = [token % (N_VOCAB - 4) + 4 for token in TOKENS]
    file = FAMILIES[name].write(tmp_path / f"{name}.gguf")
    # In f32: of f16 keys the rounding depends on which cell a token is in.
    with (
        Model(Weights(file)) as model,
        model.stream(SinkPolicy(N_KEEP, 1), N_CTX, "f32", "f32") as stream,
    ):
        n_fed = 100 if name != "lfm2" else 40  # a recurrent state cannot forget
        stream.feed(tokens[:n_fed])
        stream.save(path)
        with model.restore(path) as other:
            assert other.restored
            assert other.restored.n_evaluated == 0, other.restored.why
            rest = tokens[n_fed : n_fed + 8]
            found, expected = (
                [one.feed([token]) and one.logits() for token in rest] for one in (other, stream)
            )
            assert np.abs(np.array(found) - np.array(expected)).max() < 2e-3


# -- where the cells do not fit ------------------------------------------------------------------


def test_other_cache_types_evaluate_what_is_visible(model: Model, path: Path) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.save(path)
        visible = stream.visible_tokens()
    with model.restore(path, cache_type_k="f16") as other:
        assert other.restored
        assert other.restored.n_evaluated == N_CTX
        assert "cache type k f32, and here it is f16" in other.restored.why
        assert other.visible_tokens() == visible
        assert other.stats.index == 100
        assert np.isfinite(scores(other, TOKENS[100:150])).all()


def test_evaluated_again_it_is_a_fresh_stream_of_what_was_visible(model: Model, path: Path) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.save(path)
        visible = stream.visible_tokens()
    with model.restore(path, flash_attn=True) as other, opened(model, flash_attn=True) as fresh:
        assert other.restored
        assert "flash attn" in other.restored.why
        fresh.feed(visible)
        assert np.abs(other.logits() - fresh.logits()).max() < 1e-4


def test_a_smaller_context_keeps_the_newest(model: Model, path: Path) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.save(path)
    events: list[str] = []
    with model.restore(path, n_ctx=20, on_event=lambda event: events.append(event.kind)) as other:
        assert other.restored
        assert "n_ctx is 20" in other.restored.why
        assert other.visible_tokens() == [*TOKENS[:N_KEEP], *TOKENS[84:100]]
        assert other.stats.evicted == 80
        assert events == ["evict", "restore"]
        other.feed(TOKENS[100:150])
        assert other.stats.sees == ((0, 4), (134, 150))


def test_a_prefix_that_leaves_no_window_is_refused(model: Model, path: Path) -> None:
    with model.stream(SinkPolicy(30), N_CTX) as stream:
        stream.feed(TOKENS[:100])
        stream.save(path)
    with pytest.raises(UsageError, match="leaves no window in n_ctx=20"):
        model.restore(path, n_ctx=20)
    with pytest.raises(UsageError, match="prefix of 30 tokens leaves no window in n_ctx=20"):
        model.restore(path, SinkPolicy(2), n_ctx=20)


def test_another_model_is_refused(model: Model, path: Path, tmp_path: Path) -> None:
    """Of the same shape, with the same header: another training run."""
    with opened(model) as stream:
        stream.feed(TOKENS[:20])
        stream.save(path)
    other = TinyModel.create(seed=1).write(tmp_path / "other.gguf")
    with (
        Model(Weights(other)) as another,
        pytest.raises(SessionError, match=r"another model: .*tiny\.gguf"),
    ):
        another.restore(path)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(model.path.read_bytes())
    with Model(Weights(moved)) as same, same.restore(path) as stream:
        assert stream.restored
        assert stream.restored.n_evaluated == 0


# -- the file ------------------------------------------------------------------------------------


def saved(model: Model, path: Path) -> Path:
    with opened(model) as stream:
        stream.feed(TOKENS[:100])
        stream.save(path)
    return path


def test_it_belongs_to_its_owner_alone(model: Model, path: Path) -> None:
    os.umask(0)
    saved(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    saved(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_followed(model: Model, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    path.symlink_to(target)
    saved(model, path)
    assert path.is_symlink()
    assert target.is_file()


def test_a_disk_that_fills_up_leaves_the_old_file(
    model: Model, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(model, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(model) as stream:
        stream.feed(TOKENS[:50])
        monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
        with pytest.raises(SessionError, match="No space left"):
            stream.save(path)
        stream.feed(TOKENS[50:60])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_session(model: Model, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="there is no session"):
        model.restore(tmp_path / "nothing")
    with pytest.raises(SessionError, match="cannot be read"):
        model.restore(tmp_path)
    with pytest.raises(SessionError, match="torn or damaged"):
        model.restore(model.path)
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    with pytest.raises(SessionError, match="not a session"):
        model.restore(archive)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_torn_file_is_refused(model: Model, path: Path, share: float) -> None:
    whole = saved(model, path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SessionError, match="torn or damaged"):
        model.restore(path)


def test_any_flipped_bit_of_the_contents_is_noticed(model: Model, path: Path) -> None:
    whole = saved(model, path).read_bytes()
    draw = random.Random(2)
    with zipfile.ZipFile(path) as archive:
        places = [
            whole.index(data) + at
            for data in map(archive.read, archive.namelist())
            for at in draw.sample(range(len(data)), 75)
        ]
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(SessionError, match="damaged"):
            model.restore(path)


def rewritten(path: Path, change: Any, cells: bytes | None = None) -> None:
    """The file with another record or other cells, and checksums to match."""
    with zipfile.ZipFile(path) as archive:
        record = json.loads(archive.read("session.json"))
        cells = archive.read("cells.bin") if cells is None else cells
    change(record)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("session.json", json.dumps(record))
        archive.writestr("cells.bin", cells)


def put(*keys: Any, value: Any) -> Any:
    def change(record: Any) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


HOSTILE = {
    "version": put("version", value=99),
    "no version": lambda record: record.pop("version"),
    "text for a number": put("stream", "n_ctx", value="48"),
    "n_ctx of a billion": put("stream", "n_ctx", value=10**9),
    "n_ctx below 0": put("stream", "n_ctx", value=-1),
    "unknown token": put("stream", "pieces", 0, "tokens", 0, value=10**6),
    "negative token": put("stream", "pending", value=[-5]),
    "order": put("stream", "pieces", 1, "index", value=0),
    "positions": put("stream", "pieces", 0, "pos", value=2**40),
    "negative position": put("stream", "pieces", 0, "pos", value=-3),
    "missing tail": put("stream", "n_tokens", value=5),
    "no pieces": put("stream", "pieces", value=[]),
    "keeps all": put("stream", "n_keep", value=48),
    "keep of the policy": put("stream", "policy", "n_keep", value="all"),
    "discard": put("stream", "policy", "n_discard", value=-4),
    "counters": put("stream", "counters", "evicted", value=-1),
    "boundaries": put("stream", "boundaries", value=[9, 3]),
    "pins": put("stream", "pinned", "spans", value=[[1] * 30]),
    "cache type": put("kind", "cache_type_k", value="f99"),
    "escape codes": put("kind", "path", value="/a/\x1b]0;owned\x07"),
    "nested": put("talk", value=json.loads("[" * 500 + "]" * 500)),
    "no stream": lambda record: record.pop("stream"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_are_refused(model: Model, path: Path, name: str) -> None:
    rewritten(saved(model, path), HOSTILE[name])
    with pytest.raises(StreamsinkError):
        model.restore(path)


def test_packed_members_are_refused(model: Model, path: Path) -> None:
    """A zip bomb has to be packed."""
    saved(model, path)
    with zipfile.ZipFile(path) as archive:
        record = archive.read("session.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("session.json", record)
        archive.writestr("cells.bin", bytes(10**7))
    with pytest.raises(SessionError, match="packed"):
        model.restore(path)


def test_cells_that_are_not_this_stream_are_evaluated_anew(model: Model, path: Path) -> None:
    with opened(model) as stream:
        stream.feed(TOKENS[:30])
        stream.save(path)
    with zipfile.ZipFile(path) as archive:
        other_cells = archive.read("cells.bin")
    rewritten(saved(model, path), lambda record: None, other_cells)
    with model.restore(path) as stream:
        assert stream.restored
        assert "of another stream" in stream.restored.why
        assert stream.restored.n_evaluated == N_CTX


FUZZ = """
import random, sys, zipfile
from pathlib import Path
from streamsink.model import Model
from streamsink.llama.weights import Weights
from streamsink import session
from streamsink.errors import StreamsinkError

path, n = Path(sys.argv[2]), int(sys.argv[3])
saved = session.read(path)
cells = bytes(session.read_cells(path))
draw = random.Random(5)
loaded = 0
with Model(Weights(Path(sys.argv[1]))) as model:
    stream = model.stream(saved.stream.policy, saved.stream.n_ctx, "f32", "f32", n_batch=64)
    for _ in range(n):
        harmed = bytearray(cells)
        for _ in range(draw.randrange(1, 4)):
            # The first bytes say what there is, the later ones are numbers.
            at = draw.randrange(800) if draw.random() < 0.8 else draw.randrange(len(harmed))
            harmed[at] = draw.choice((0, 255, 127, 128, harmed[at] ^ 1 << draw.randrange(8)))
        if draw.random() < 0.1:
            del harmed[draw.randrange(len(harmed)):]
        try:
            found = stream.restore(saved.stream, saved.kind, memoryview(bytes(harmed)))
            loaded += not found.n_evaluated
            for _ in stream.generate(3, ignore_eos=True):
                pass
            stream.feed(range(10, 60))
        except StreamsinkError:
            pass
print(loaded)
"""


def test_harmed_cells_abort_nothing(model: Model, path: Path) -> None:
    """With checksums that match: llama.cpp itself has to refuse them, or make do with them."""
    saved(model, path)
    n = 300
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(model.path), str(path), str(n)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert n / 10 < int(done.stdout) < n * 3 / 4


def test_records_are_plain_data(model: Model, path: Path) -> None:
    record = session.read(saved(model, path))
    again = msgspec.json.decode(msgspec.json.encode(record), type=session.Session)
    assert again == record
    assert msgspec.structs.replace(record, version=1) != record


KILLED = """
import sys
from pathlib import Path
from streamsink.model import Model
from streamsink.llama.weights import Weights
from streamsink.core.policy import SinkPolicy

with Model(Weights(Path(sys.argv[1]))) as model:
    with model.stream(SinkPolicy(4, 1, "reanchor", 16), 48) as stream:
        for at in range(10**6):
            stream.feed([at % 200 + 4] * 5)
            stream.save(sys.argv[2])
            print(stream.stats.index, flush=True)
"""


def test_killed_at_any_moment_the_last_save_is_there(model: Model, path: Path) -> None:
    draw = random.Random(3)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(model.path), str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout
        told = 0
        for _ in range(draw.randrange(2, 30)):
            told = int(process.stdout.readline())
        process.kill()
        rest = process.stdout.read().split()
        process.wait()
        told = int(rest[-1]) if rest else told
        with model.restore(path) as stream:
            # What was said to be saved is saved; of the next nothing was said yet.
            assert stream.stats.index in (told, told + 5)
            assert stream.restored
            assert stream.restored.n_evaluated == 0
