"""Mutations of seeds, where atheris is not installed: bits, ends, pieces, and values that readers stumble over."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

__all__ = ["mutated", "mutations"]

MOST_STEPS = 4  # mutations upon each other
VALUES = (
    *(b"0", b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"2147483648", b"9223372036854775808"),
    *(b"1" * 400, b"[" * 2_000, b'"\\ud800"', b'"../../x"', b"\xff", b"\x00", b"\xef\xbb\xbf", b'"', b",", b"\r"),
)
WORDS = re.compile(rb'-?[0-9][0-9.e+-]*|"[^"]*"|true|false|null')


def mutations(seeds: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` mutated seeds, the same for the same `seed`."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield mutated(seeds[int(random.integers(len(seeds)))], random)


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """The data after some steps."""
    for _ in range(int(random.integers(1, MOST_STEPS + 1))):
        data = _STEPS[int(random.integers(len(_STEPS)))](data, random) if data else b"x"
    return data


def _bit(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[int(random.integers(len(changed)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _byte(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[int(random.integers(len(changed)))] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(changed)


def _cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(len(data)))]


def _without(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = sorted(random.integers(len(data) + 1, size=2).tolist())
    return data[:start] + data[stop:]


def _twice(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = sorted(random.integers(len(data) + 1, size=2).tolist())
    return data[:stop] + data[start:]


def _insert(data: bytes, random: np.random.Generator) -> bytes:
    at = int(random.integers(len(data) + 1))
    return data[:at] + VALUES[int(random.integers(len(VALUES)))] + data[at:]


def _other_value(data: bytes, random: np.random.Generator) -> bytes:
    """A number, text or constant of a text format in place of another."""
    words = list(WORDS.finditer(data))
    if not words:
        return _insert(data, random)
    word = words[int(random.integers(len(words)))]
    other = words[int(random.integers(len(words)))].group()
    value = VALUES[int(random.integers(len(VALUES)))] if random.random() < 0.7 else other
    return data[: word.start()] + value + data[word.end() :]


def _number(data: bytes, random: np.random.Generator) -> bytes:
    """Four or eight bytes as a number that sizes should not have."""
    width = int(random.choice([4, 8]))
    value = int(random.choice([0, 1, 2 ** (8 * width - 1) - 1])) if random.random() < 0.7 else 1 << (8 * width - 2)
    at = int(random.integers(len(data)))
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


_STEPS = (_bit, _byte, _cut, _without, _twice, _insert, _other_value, _other_value, _number)
