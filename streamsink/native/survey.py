"""What a file needs and allows, found out without loading its weights; see `streamsink.survey`.

llama.cpp can go through all of loading a model and making a context but for the memory
(``no_alloc``), and its log then says what would be allocated where. Run as a module, in a process
that may die.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict
from pathlib import Path

import llama_cpp.llama_cpp as llama

from streamsink.child import Answer, serve
from streamsink.errors import ModelError
from streamsink.header import read_header
from streamsink.native.library import forget_errors, last_error, log
from streamsink.native.params import context_params, model_params
from streamsink.native.traits import read_traits
from streamsink.native.vocabulary import NativeVocabulary
from streamsink.settings import CacheSettings

# llama-kv-cache.cpp and llama-memory-recurrent.cpp: the size of a cache; llama-context.cpp: what is
# computed in; llama-model.cpp: the layers. What was not allocated has a buffer of size 0.
_CACHE = re.compile(r": size = +([\d.]+) MiB \( *\d+ cells")
_SCRATCH = re.compile(r"(?:output|compute) buffer size = +([\d.]+) MiB")
_LAYER = re.compile(r"layer +(\d+) assigned to device \S+, is_swa = 1")
_TOKENIZER = re.compile(r"pre-tokenizer|special_eos_id is not|control-looking token", re.IGNORECASE)
NO_SPECIAL_LOADING = 0
"""llama.h: LLAMA_LOAD_MODE_NONE; mapping a file cannot be simulated."""


def answer(request: Answer) -> Answer:
    """Look at a file.

    The request names the ``path``, ``n_gpu_layers``, the ``settings`` of a cache, and ``contexts``:
    pairs of n_ctx and type of cache.
    """
    lines = _listen()
    header = read_header(Path(request["path"]))
    header.parts()
    params = model_params(request["n_gpu_layers"])
    if hasattr(params, "no_alloc"):
        params.no_alloc = True
        params.load_mode = NO_SPECIAL_LOADING
    forget_errors()
    model = llama.llama_model_load_from_file(str(header.path).encode(), params)
    if not model:
        raise ModelError(
            f"llama.cpp cannot load {header.path}: {last_error() or 'no reason given'}"
        )
    traits = read_traits(model, header)
    vocabulary = NativeVocabulary(model)
    layers = [int(layer) for line in lines for layer in _LAYER.findall(line)]
    complaints = sorted({line.split(": ", 1)[-1] for line in lines if _TOKENIZER.search(line)})
    template = llama.llama_model_chat_template(model, None)
    contexts = []
    shifts = False
    if traits.decoder and not traits.encoder:
        for n_ctx, cache_type in request["contexts"]:
            types = {"cache_type_k": cache_type, "cache_type_v": cache_type}
            settings = CacheSettings(**{**request["settings"], **types})
            lines.clear()
            made = _context(model, n_ctx, settings, params.n_gpu_layers > 0, traits.n_swa > 0)
            if made is not None:
                shifts = made
                cache, scratch = _mib(lines, _CACHE), _mib(lines, _SCRATCH)
                contexts.append([n_ctx, cache_type, cache, scratch])
    found = {
        "traits": asdict(traits),
        "swa_layers": layers,
        "n_vocab": vocabulary.n_tokens,
        "bos": vocabulary.bos_token,
        "adds_bos": bool(llama.llama_vocab_get_add_bos(vocabulary.handle)),
        "eos": vocabulary.eos_token,
        "complaints": complaints,
        "template": template.decode("utf-8", "replace") if template else "",
        "shifts": shifts,
        "contexts": contexts,
    }
    llama.llama_model_free(model)
    return found


def _context(
    model: llama.llama_model_p, n_ctx: int, settings: CacheSettings, offloads: bool, swa: bool
) -> bool | None:
    """Go through making a context; whether its cache can be shifted, None where there is none."""
    params = context_params(n_ctx, settings, offloads=offloads, swa=swa, swa_full=False)
    context = llama.llama_init_from_model(model, params)
    if not context:
        return None
    memory = llama.llama_get_memory(context)
    shifts = bool(memory and llama.llama_memory_can_shift(memory))
    llama.llama_free(context)
    return shifts


def _mib(lines: list[str], pattern: re.Pattern[str]) -> int:
    """Bytes of all that lines of the log say in MiB."""
    return round(sum(float(mib) for line in lines for mib in pattern.findall(line)) * 2**20)


def _listen() -> list[str]:
    """Lines of llama.cpp's log from now on."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if any(pattern.search(text) for pattern in (_CACHE, _SCRATCH, _LAYER, _TOKENIZER)):
                lines.append(text)

    log.addHandler(Listener())
    log.setLevel(logging.DEBUG)
    return lines


if __name__ == "__main__":
    serve(answer)
