"""What is known of a file before its weights are loaded: traits, memory, verdicts, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamsink import child
from streamsink.backend import Capabilities
from streamsink.errors import ModelError
from streamsink.header import Header, read_header
from streamsink.settings import CacheSettings
from streamsink.traits import Traits, capabilities
from streamsink.trial import UNMEASURED

SECONDS = 60.0
MOST_BYTES = 8 * 2**30
"""Memory of its own that going through a load may take: vocabularies are large, weights are not."""
CONTEXTS = (2048, 8192, 32768)
CACHE_TYPES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True, slots=True)
class Need:
    """What a context takes.

    Attributes
    ----------
    n_ctx : int
        Tokens of context.
    cache_type : str
        Type of keys and values.
    cache_bytes, scratch_bytes : int
        Bytes of the cache, and of what is computed in.
    """

    n_ctx: int
    cache_type: str
    cache_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found out.

    Attributes
    ----------
    path : Path
        The file.
    weight_bytes : int
        Size of all files of the model.
    traits : Traits
        What the model is like.
    swa_layers : tuple of int
        Layers with a sliding window.
    n_vocab : int
        Tokens of the vocabulary.
    bos, eos : int or None
        Special tokens.
    adds_bos : bool
        Whether a text begins with BOS.
    complaints : tuple of str
        What llama.cpp finds odd in the vocabulary.
    template : str
        The chat template; empty where there is none.
    capabilities : Capabilities
        What a stream may do, sliding windows kept whole for rotation.
    needs : tuple of Need
        What contexts take.
    """

    path: Path
    weight_bytes: int
    traits: Traits
    swa_layers: tuple[int, ...]
    n_vocab: int
    bos: int | None
    eos: int | None
    adds_bos: bool
    complaints: tuple[str, ...]
    template: str
    capabilities: Capabilities
    needs: tuple[Need, ...]

    def kv_bytes(self, cache_type: str) -> float | None:
        """Bytes of cache that a token takes; None where contexts of two sizes were not made."""
        sizes = [(n.n_ctx, n.cache_bytes) for n in self.needs if n.cache_type == cache_type]
        if len(sizes) < 2:
            return None
        (few, small), (many, large) = sizes[0], sizes[-1]
        return (large - small) / (many - few)


def survey(
    path: Path,
    settings: CacheSettings,
    contexts: Sequence[int] = CONTEXTS,
    n_gpu_layers: int | None = None,
) -> Survey:
    """Find out about a file.

    Parameters
    ----------
    path : Path
        A GGUF file, or the first of a split one.
    settings : CacheSettings
        Settings of a stream; its types of cache are left aside.
    contexts : sequence of int
        Tokens of context to find the need of, each with every type of `CACHE_TYPES`.
    n_gpu_layers : int, optional
        See `Model.open`.

    Raises
    ------
    UsageError
        There is no such file.
    ModelError
        It is damaged, or llama.cpp cannot load it.
    """
    header = read_header(path)
    parts = header.parts()
    request = {
        "path": str(path),
        "n_gpu_layers": n_gpu_layers,
        "settings": asdict(settings),
        "contexts": [(n, kind) for n in sorted({*contexts}) for kind in CACHE_TYPES],
    }
    found = _ask(header, request)
    traits = Traits(**{**found["traits"], "n_head_kv": tuple(found["traits"]["n_head_kv"])})
    return Survey(
        path=path,
        weight_bytes=sum(part.stat().st_size for part in parts),
        traits=traits,
        swa_layers=tuple(found["swa_layers"]),
        n_vocab=found["n_vocab"],
        bos=found["bos"],
        eos=found["eos"],
        adds_bos=found["adds_bos"],
        complaints=tuple(found["complaints"]),
        template=found["template"],
        capabilities=capabilities(
            traits, settings, swa_full=True, shifts=found["shifts"], measured=UNMEASURED
        ),
        needs=tuple(Need(*need) for need in found["contexts"]),
    )


def _ask(header: Header, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return child.ask(
            "streamsink.native.survey", request, seconds=SECONDS, n_bytes=MOST_BYTES, gpu=True
        )
    except child.Died as death:
        raise ModelError(
            f"llama.cpp cannot load {header.path}: it died in a trial ({death}); the file is "
            "damaged, or of a kind that this llama.cpp cannot run"
        ) from None
