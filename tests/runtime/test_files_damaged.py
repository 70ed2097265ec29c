"""Damaged ENVI headers: read as they were meant, or refused; never another exception, never slowly."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import CubeFileError
from runtime.files import read_cube
from tests.runtime.files_data import header_lines, sample, write_pair

Lines = list[str]


def _delete(lines: Lines, chance: random.Random) -> Lines:
    at = chance.randrange(len(lines))
    return lines[:at] + lines[at + 1 :]


def _garbage(lines: Lines, chance: random.Random) -> Lines:
    return _value(
        lines, chance, chance.choice(["", "x", "{", "}", "1e3", "0x10", "nan", "-", "\u0663", "1 2", "\x1b[2J"])
    )


def _huge(lines: Lines, chance: random.Random) -> Lines:
    return _value(lines, chance, chance.choice(["9" * 400, str(2**63), str(2**31), "1e400", "9" * 100_000]))


def _negative(lines: Lines, chance: random.Random) -> Lines:
    return _value(lines, chance, str(-chance.randrange(1, 2**40)))


def _duplicate(lines: Lines, chance: random.Random) -> Lines:
    line = chance.choice(lines)
    return [*lines, chance.choice([line, line + "0", line.upper()])]


def _unclosed(lines: Lines, chance: random.Random) -> Lines:
    at = chance.choice([i for i, line in enumerate(lines) if "}" in line])
    return [*lines[:at], lines[at].replace("}", chance.choice(["", "{", "}}"])), *lines[at + 1 :]]


def _value(lines: Lines, chance: random.Random, value: str) -> Lines:
    at = chance.randrange(1, len(lines))
    return [*lines[:at], lines[at].partition("=")[0] + "= " + value, *lines[at + 1 :]]


def _nul(text: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(text))
    return text[:at] + b"\0" * chance.randrange(1, 40) + text[at:]


def _truncate(text: bytes, chance: random.Random) -> bytes:
    return text[: chance.randrange(len(text))]


def _flip(text: bytes, chance: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _shuffled(text: bytes, chance: random.Random) -> bytes:
    data = list(text)
    chance.shuffle(data)
    return b"ENVI\n" + bytes(data)


BY_LINE: list[Callable[[Lines, random.Random], Lines]] = [_delete, _garbage, _huge, _negative, _duplicate, _unclosed]
BY_BYTE: list[Callable[[bytes, random.Random], bytes]] = [_nul, _truncate, _flip, _flip, _shuffled]


@pytest.mark.parametrize("seed", range(100))
def test_damaged_headers_are_read_right_or_refused(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    cube = sample("u2", (3, 4, 5), seed)
    interleave = chance.choice(["bil", "bip", "bsq"])
    more: dict[str, Any] = {
        "description": "{a\n b}",
        "wavelength": "{400.5,\n 500.5, 600.5}",
        "data_ignore_value": "-9999",
    }
    path = write_pair(tmp_path, cube, 12, interleave, **more)
    lines = header_lines(cube, 12, interleave, 0, **more)
    damage = [*BY_LINE, *BY_BYTE][seed % (len(BY_LINE) + len(BY_BYTE))]
    for _ in range(6):
        text = "\n".join(damage(lines, chance) if damage in BY_LINE else lines).encode()
        if damage in BY_BYTE:
            text = damage(text, chance)
        path.write_bytes(text)
        start = time.process_time()
        try:
            read = read_cube(path)
        except CubeFileError as error:
            assert str(error).isprintable()
            assert error.file is not None
        else:
            # What a flipped bit can make of a layout without contradicting the file's size is another layout.
            if damage is not _flip:
                np.testing.assert_array_equal(read.cube, cube)
            assert read.cube.nbytes == cube.nbytes
        assert time.process_time() - start < 60
