"""Files that were damaged, or made to do damage: seeded mutations of a GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from streamsink.gguf.reader import read_header

INTERESTING = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 31, 64, 127, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1,
               2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
Mutation = Callable[[bytearray, int, np.random.Generator], None]


def mutations(path: Path, n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged copies of a file, each with a name of what was done to it."""
    whole = path.read_bytes()
    n_header = header_bytes(path)
    rng = np.random.default_rng(seed)
    for at in range(n):
        kind = KINDS[at % len(KINDS)]
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            kind(data, n_header, rng)
        yield f"{at}-{kind.__name__}", bytes(data)


def header_bytes(path: Path) -> int:
    """Size of a file's header: everything before the first tensor's data, padding included."""
    header = read_header(path)
    end = max(tensor.offset for tensor in header.tensors.values())
    return header.n_bytes - end if end < header.n_bytes else header.n_bytes


def flip_bits(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """As a bad disk does, in the header."""
    for place in rng.integers(0, n_header, int(rng.integers(1, 9))):
        data[place % len(data)] ^= 1 << int(rng.integers(8))


def flip_early_bits(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """In the metadata that come before the vocabulary: sizes, counts."""
    for place in rng.integers(4, 1500, int(rng.integers(1, 5))):
        data[place % len(data)] ^= 1 << int(rng.integers(8))


def flip_late_bits(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """In the tensors' names, shapes, types and offsets, at the end of the header."""
    for place in rng.integers(n_header - 1500, n_header, int(rng.integers(1, 5))):
        data[place % len(data)] ^= 1 << int(rng.integers(8))


def flip_weights(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """In the tensors' data: infinities and NaN among them."""
    if len(data) > n_header:
        for place in rng.integers(n_header, len(data), 2000):
            data[place] = int(rng.integers(256))


def write_integers(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """Numbers that overflow, end or begin something, anywhere in the header."""
    for _ in range(int(rng.integers(1, 4))):
        value = INTERESTING[int(rng.integers(len(INTERESTING)))]
        form = "<Q" if rng.integers(2) or value >= 2**32 else "<I"
        place = int(rng.integers(4, min(n_header, len(data)) - 8))
        struct.pack_into(form, data, place, value)


def cut_off(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """A download that broke off."""
    del data[int(rng.integers(0, len(data))) :]
    data.extend(b"" if data else b"G")


def cut_out(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """A hole in the header."""
    place = int(rng.integers(4, max(5, min(n_header, len(data)))))
    del data[place : place + int(rng.integers(1, 64))]


def insert(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """Bytes too many in the header."""
    place = int(rng.integers(4, max(5, min(n_header, len(data)))))
    data[place:place] = rng.bytes(int(rng.integers(1, 64)))


def repeat(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """A part of the header written over another."""
    length = int(rng.integers(4, 200))
    source, target = (int(place) for place in rng.integers(4, max(5, len(data) - 200), 2))
    end = min(len(data), target % n_header + length)
    begin = target % n_header
    data[begin:end] = data[source % n_header :][: end - begin].ljust(end - begin, b"\0")


def change_a_number(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """The value of a metadata pair: found by its key, so that the file stays well-formed."""
    keys = [b".block_count", b".context_length", b".embedding_length", b".feed_forward_length",
            b".head_count", b".head_count_kv", b".dimension_count", b".freq_base", b".vocab_size",
            b"layer_norm_rms_epsilon", b"bos_token_id", b"eos_token_id", b"padding_token_id",
            b"add_bos_token", b"expert_count", b"expert_used_count", b"sliding_window",
            b"kv_lora_rank", b"key_length", b"value_length"]  # fmt: skip
    key = keys[int(rng.integers(len(keys)))]
    place = data.find(key)
    if place < 0:
        return
    value = INTERESTING[int(rng.integers(len(INTERESTING)))] % 2**32
    # After the key: four bytes of its type, then the value.
    struct.pack_into("<I", data, place + len(key) + 4, value)


def change_a_shape(data: bytearray, n_header: int, rng: np.random.Generator) -> None:
    """The shape, type or offset of a tensor: found by its name."""
    names = [b"token_embd.weight", b"output.weight", b"output_norm.weight", b"attn_q.weight",
             b"attn_k.weight", b"attn_v.weight", b"ffn_down.weight"]  # fmt: skip
    name = names[int(rng.integers(len(names)))]
    place = data.find(name)
    if place < 0:
        return
    at = place + len(name) + 4 * int(rng.integers(0, 8))
    value = INTERESTING[int(rng.integers(len(INTERESTING)))] % 2**32
    if at + 4 <= len(data):
        struct.pack_into("<I", data, at, value)


KINDS: tuple[Mutation, ...] = (
    flip_bits, flip_early_bits, flip_late_bits, flip_weights, write_integers, cut_off, cut_out,
    insert, repeat, change_a_number, change_a_shape,
)  # fmt: skip
