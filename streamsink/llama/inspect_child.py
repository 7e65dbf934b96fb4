"""The child of `streamsink.gguf.inspection`: what a file needs and allows, its weights not loaded.

llama.cpp can go through all of loading a model and making a context but for the memory
(``no_alloc``), and its log then says what would be allocated. Run as a module, in a process that
may die.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path

import llama_cpp.llama_cpp as llama

from streamsink.errors import ModelError
from streamsink.gguf.inspection import cache_settings, usual_contexts
from streamsink.gguf.preflight import remembered
from streamsink.gguf.reader import read_header, tensor_names
from streamsink.gguf.settings import CacheSettings
from streamsink.llama.devices import gpus
from streamsink.llama.library import hearing
from streamsink.llama.params import context_params, model_params
from streamsink.llama.read_traits import TOLD, read_traits
from streamsink.llama.tokenizer import NativeTokenizer
from streamsink.system.serve import Answer, limit, serve

# llama-kv-cache.cpp, llama-memory-recurrent.cpp: the size of a cache; llama-context.cpp: what is
# computed in. A buffer that was not allocated says 0.
_CACHE = re.compile(r": size = +([\d.]+) MiB \( *\d+ cells")
_SCRATCH = re.compile(r"(?:output|compute) buffer size = +([\d.]+) MiB")
_SIZES = re.compile(f"{_CACHE.pattern}|{_SCRATCH.pattern}")
NO_SPECIAL_LOADING = 0
"""llama.h: LLAMA_LOAD_MODE_NONE; mapping a file cannot be simulated."""


def answer(request: Answer) -> Answer:
    """Look at a file.

    The request names the ``path``, ``n_gpu_layers``, the ``settings`` of a cache, the ``contexts``
    to try, and ``n_bytes``, the most memory to take. The file's header has been checked already.
    """
    if not llama.llama_supports_gpu_offload():  # a GPU's driver reserves what it likes
        limit(request["n_bytes"])
    path = Path(request["path"])
    params = model_params(request["n_gpu_layers"])
    offloads = params.n_gpu_layers > 0
    simulates = hasattr(params, "no_alloc")
    if simulates:
        params.no_alloc = True
        if hasattr(params, "load_mode"):
            params.load_mode = NO_SPECIAL_LOADING
        else:  # llama-cpp-python in between
            params.use_mmap = False
    else:  # llama-cpp-python of old: the file is mapped, and contexts are left out
        params.use_extra_bufts = False
    # A vocabulary of 150,000 tokens takes llama.cpp 0.3 s and the header's reader half of that.
    with ThreadPoolExecutor(1) as beside, hearing(TOLD) as said:
        reading = beside.submit(read_header, path)
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelError(f"llama.cpp cannot load {path}: {said.reason or 'no reason given'}")
    header = reading.result()
    names = tensor_names(header)
    weight_bytes = sum(part.stat().st_size for part in header.parts())
    tokenizer = NativeTokenizer(model)
    traits = read_traits(model, tokenizer, header, names, said.lines)
    special_texts = tokenizer.special_texts
    shifts, needs = not simulates, []
    if simulates and traits.decoder and not traits.encoder:
        usual = CacheSettings(**request["settings"])
        contexts = request["contexts"] or usual_contexts(traits.n_ctx_within(usual))
        whole = context_params(contexts[0], usual, traits, offloads=offloads, swa_full=True)
        shifts = _can_shift(model, whole)
        for n_ctx, settings in product(contexts, cache_settings(usual, traits)):
            context = context_params(n_ctx, settings, traits, offloads=offloads, swa_full=False)
            with hearing(_SIZES) as said:
                _can_shift(model, context)
            if lines := said.lines:
                sizes = _bytes(lines, _CACHE), _bytes(lines, _SCRATCH)
                needs.append((n_ctx, settings.cache_type_k, *sizes))
    llama.llama_model_free(model)
    return {
        "weight_bytes": weight_bytes,
        "traits": asdict(traits),
        "special_texts": special_texts,
        "shifts": shifts,
        "measured": asdict(remembered(header)),
        "needs": needs,
        "gpu_bytes": sum(gpu.free_bytes for gpu in gpus()) if offloads else None,
    }


def _can_shift(model: llama.llama_model_p, params: llama.llama_context_params) -> bool:
    """Go through making a context, and ask its cache."""
    context = llama.llama_init_from_model(model, params)
    if not context:
        return False
    memory = llama.llama_get_memory(context)
    shifts = bool(memory and llama.llama_memory_can_shift(memory))
    llama.llama_free(context)
    return shifts


def _bytes(lines: list[str], pattern: re.Pattern[str]) -> int:
    """Bytes of all that lines of the log say in MiB."""
    return round(sum(float(mib) for line in lines for mib in pattern.findall(line)) * 2**20)


if __name__ == "__main__":
    serve(answer)
