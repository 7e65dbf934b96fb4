"""llama.cpp behind `streamsink.engine.context`: the only importer of ``llama_cpp``.

Whatever of it is imported first sees to it that llama-cpp-python is there and can be loaded.
"""

from __future__ import annotations

import re
from importlib import metadata

from streamsink.errors import EngineError
from streamsink.system.installing import how_to_install

OLDEST = (0, 3, 17)
"""The first whose contexts take ``flash_attn_type``; as in pyproject.toml."""


def _require() -> None:
    fix = how_to_install("llama-cpp-python")
    try:
        import llama_cpp.llama_cpp
    except ModuleNotFoundError as error:
        if error.name not in ("llama_cpp", "llama_cpp.llama_cpp"):
            raise EngineError(f"llama-cpp-python lacks {error.name}: {fix}") from None
        raise EngineError(f"llama-cpp-python is not installed: {fix}") from None
    except Exception as error:  # whatever its loading of a shared library raises
        again = fix.replace(" install ", " install --force-reinstall --no-cache-dir ")
        raise EngineError(f"llama-cpp-python cannot be loaded ({error}): {again}") from None
    # A child process has the bindings alone, without the package around them.
    version = getattr(llama_cpp, "__version__", None) or metadata.version("llama-cpp-python")
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST:
        newer = how_to_install(f"llama-cpp-python>={'.'.join(map(str, OLDEST))}")
        raise EngineError(f"llama-cpp-python {version} is too old: {newer}")


_require()
