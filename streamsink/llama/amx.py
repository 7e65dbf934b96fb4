"""Whether this build of llama.cpp can be trusted with Intel's AMX instructions.

GCC before 15 tells its optimiser that ``_tile_loadconfig`` reads 8 bytes of a tile configuration,
while the instruction reads 64; most of the configuration is then never written, and the first
matrix product takes the process with it (https://github.com/ggml-org/llama.cpp/issues/20824).
``scripts/ldtilecfg.h`` mends streamsink's own build. Of another build that may have the fault no
weights are packed for AMX: slower, but it lives.
"""

from __future__ import annotations

import re
from pathlib import Path

from streamsink.llama.library import features

SOUND_GCC = 15
MENDED = b"ldtilecfg reads 64 bytes"
_COMPILER = re.compile(rb"GCC: \([^)]*\) (\d+)")


def is_broken() -> bool:
    """Whether AMX code was compiled in, by a compiler that spoils it."""
    if "AMX_INT8 = 1" not in features():
        return False
    return any(misreads(library.read_bytes()) for library in _libraries())


def misreads(library: bytes) -> bool:
    """Whether a library comes from a GCC that spoils AMX code, and was not mended."""
    versions = [int(found[1]) for found in _COMPILER.finditer(library)]
    return MENDED not in library and any(version < SOUND_GCC for version in versions)


def _libraries() -> set[Path]:
    """Files of llama.cpp that this process has loaded and that may hold its CPU backend."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:  # no Linux: other systems' compilers are sound
        return set()
    paths = {Path(line[line.index("/") :]) for line in maps.splitlines() if "/" in line}
    return {path for path in paths if path.name.startswith(("libggml-cpu", "libllama"))}
