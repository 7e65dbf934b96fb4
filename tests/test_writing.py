"""What is written where somebody says: files whole, pipes and open descriptors as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from streamsink.system.writing import open_out, write_whole


def test_a_file_is_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    write_whole(tmp_path / "a", "é\n")
    with open_out(tmp_path / "b") as out:
        out.write("é\n")
    assert [(tmp_path / name).read_text("utf-8") for name in "ab"] == ["é\n"] * 2
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path, "x")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_open_descriptor_loses_nothing(name: str, tmp_path: Path) -> None:
    """What stood in the file behind it stays, and what comes later is added."""
    code = (
        "from pathlib import Path\n"
        "from streamsink.system.writing import open_out, write_whole\n"
        f"print('one', flush=True); write_whole(Path({name!r}), 'two\\n')\n"
        f"with open_out(Path({name!r})) as out: out.write('three\\n')\n"
        "print('four')\n"
    )
    file = tmp_path / "out"
    with file.open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert file.read_text().split() == ["one", "two", "three", "four"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    for write in (write_whole, lambda path, text: print(text, end="", file=open_out(path))):
        reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
        reader.start()
        write(pipe, "text")
        reader.join(30)
    assert got == ["text"] * 2
    assert pipe.is_fifo()
