"""What is known of a file before its weights are loaded: traits, memory, verdicts, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from streamsink.core.capabilities import Capabilities
from streamsink.errors import CapabilityError, UsageError
from streamsink.gguf.preflight import Measured, dies
from streamsink.gguf.reader import read_header, tensor_names
from streamsink.gguf.settings import CacheSettings
from streamsink.gguf.traits import Traits, capabilities, check_types
from streamsink.system import child

SECONDS = 60.0
MOST_BYTES = 8 * 2**30
"""Memory of its own that going through a load may take: vocabularies are large, weights are not."""
CONTEXTS = (2048, 8192, 32768, 131072)
CACHE_TYPES = ("f16", "q8_0")


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
class Inspection:
    """What was found out.

    Attributes
    ----------
    path : Path
        The file.
    weight_bytes : int
        Size of all files of the model.
    traits : Traits
        What the model is like.
    special_texts : dict of str
        Texts of special tokens; see `Model.special_texts`.
    settings : CacheSettings
        The settings that it was inspected for.
    shifts : bool
        Whether llama.cpp can shift the cache, sliding windows kept whole.
    measured : Measured
        What a trial found.
    needs : tuple of Need
        What contexts take.
    gpu_bytes : int or None
        Free memory of the GPUs that the layers go to; None where they stay with the CPU.
    """

    path: Path
    weight_bytes: int
    traits: Traits
    special_texts: dict[str, str]
    settings: CacheSettings
    shifts: bool
    measured: Measured
    needs: tuple[Need, ...]
    gpu_bytes: int | None

    def able(self, settings: CacheSettings, *, swa_full: bool) -> Capabilities:
        """What a stream may do; see `streamsink.gguf.traits.capabilities`."""
        return capabilities(
            self.traits, settings, swa_full=swa_full, shifts=self.shifts, measured=self.measured
        )

    def kv_bytes(self, cache_type: str) -> float | None:
        """Bytes of cache that a token takes; None where contexts of two sizes were not made."""
        sizes = [(n.n_ctx, n.cache_bytes) for n in self.needs if n.cache_type == cache_type]
        if len(sizes) < 2:
            return None
        (few, small), (many, large) = sizes[0], sizes[-1]
        return (large - small) / (many - few)


def inspect(
    path: Path,
    settings: CacheSettings,
    contexts: Sequence[int] = (),
    n_gpu_layers: int | None = None,
    process: child.Child | None = None,
) -> Inspection:
    """Find out about a file.

    Parameters
    ----------
    path : Path
        A GGUF file, or the first of a split one.
    settings : CacheSettings
        Settings of a stream; its types of cache are left aside.
    contexts : sequence of int
        Tokens of context to find the need of, each with every type of `CACHE_TYPES` that the model
        and the settings allow; without any, `usual_contexts`.
    n_gpu_layers : int, optional
        See `Model.open`.
    process : Child, optional
        A process of `child.INSPECTOR` that was begun already; it is ended.

    Raises
    ------
    UsageError
        There is no such file.
    ModelError
        It is damaged, or llama.cpp cannot load it.
    """
    request = {
        "path": str(path),
        "n_gpu_layers": n_gpu_layers,
        "settings": asdict(settings),
        "contexts": sorted({*contexts}),
        "n_bytes": MOST_BYTES,
    }
    try:
        with process or child.Child(child.INSPECTOR, gpu=True) as inspector:
            # Checked here, all parts, before llama.cpp sees them and while the process begins.
            tensor_names(read_header(path))
            found = inspector.ask(request, seconds=SECONDS)
    except child.Died as death:
        raise dies(path, death) from None
    traits = Traits.from_dict(found["traits"])
    return Inspection(
        path=path,
        weight_bytes=found["weight_bytes"],
        traits=traits,
        special_texts=found["special_texts"],
        settings=settings,
        shifts=found["shifts"],
        measured=Measured(**found["measured"]),
        needs=tuple(Need(*need) for need in found["needs"]),
        gpu_bytes=found["gpu_bytes"],
    )


def cache_settings(settings: CacheSettings, traits: Traits) -> list[CacheSettings]:
    """The settings with every type of `CACHE_TYPES` that they and the model allow."""
    found = []
    for name in CACHE_TYPES:
        try:
            changed = replace(settings, cache_type_k=name, cache_type_v=name)
            check_types(traits, changed)
        except (UsageError, CapabilityError):
            continue
        found.append(changed)
    return found


def usual_contexts(n_ctx_train: int) -> list[int]:
    """Tokens of context that people ask for, as far as the model was trained on them."""
    return [n_ctx for n_ctx in CONTEXTS if n_ctx <= n_ctx_train] or [n_ctx_train]
