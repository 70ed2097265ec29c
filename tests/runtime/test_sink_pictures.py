"""Pictures, read back: whole ones, and those of which something is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.bundle import load_bundle
from runtime.errors import InputError
from runtime.files import read_cube
from runtime.lines import Event, Flag, Line, LineFormat, Missing, Taken
from runtime.sinks import open_sink
from runtime.sinks import pictures as module
from runtime.sinks.contract import Block, Sink, StreamFacts
from runtime.sinks.pictures import Pictures
from runtime.sources import SourceOptions
from runtime.sources.watch_photos import Pictures as Folder
from runtime.sources.watching import Watch
from runtime.stream.opening import open_stream
from tests.contracts.bundles import known_bundle
from tests.contracts.sink import SinkContract, block_of


def facts_of(dtype: type = np.uint8, scale: float | None = 255, bands: int = 3) -> StreamFacts:
    return StreamFacts(LineFormat(bands, 12, np.dtype(dtype), scale))


class TestPictures(SinkContract):
    facts = facts_of(np.uint16, 4095)

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[StreamFacts], Sink]:
        return lambda facts: Pictures(tmp_path, facts)


def picture(first: int, lines: int, facts: StreamFacts) -> Block:
    """A block that is one picture."""
    block = block_of(first, lines, facts)
    block.flags[0] |= Flag.BREAK
    block.flags[-1] |= Flag.END
    return block


def part(block: Block, lines: slice) -> Block:
    return Block(
        block.values[lines], block.sequence[lines], block.frame_id[lines], block.utc_ns[lines], block.flags[lines]
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> NDArray[np.generic]:
    """[lines, bands, samples], as a block has it."""
    return read_cube(path).cube.transpose(1, 0, 2)


def test_a_picture_is_written_when_its_last_line_has_come(tmp_path: Path) -> None:
    block = picture(7, 40, facts_of())
    with open_sink(f"pictures:{tmp_path}", facts_of()) as sink:
        sink.write(part(block, slice(0, 30)))
        assert names(tmp_path) == []
        sink.write(part(block, slice(30, 40)))
        assert names(tmp_path) == ["000001.png"]
        sink.write(picture(100, 1, facts_of()))
    np.testing.assert_array_equal(read(tmp_path / "000001.png"), block.values)
    assert names(tmp_path) == ["000001.png", "000002.png"]
    # A later run goes on behind them.
    (tmp_path / "000041-incomplete.png").touch()
    (tmp_path / "now.png").touch()
    with Pictures(tmp_path, facts_of()) as sink:
        sink.write(picture(0, 3, facts_of()))
    assert (tmp_path / "000042.png").exists()


def test_a_picture_of_which_something_is_missing_is_named_so(tmp_path: Path) -> None:
    blocks = [picture(first, 10, facts_of()) for first in range(0, 60, 10)]
    blocks[1].flags[4] = Flag.PASSED
    blocks[2].flags[4] = Flag.INTERPOLATED
    given = [*blocks[:3], part(blocks[3], slice(0, 6)), part(blocks[3], slice(8, 10))]
    # The end of one and the beginning of the next: what follows is of another, but nothing says so.
    given += [part(blocks[4], slice(0, 7)), part(blocks[5], slice(2, 10)), picture(60, 4, facts_of())]
    with Pictures(tmp_path, facts_of()) as sink:
        for block in given:
            sink.write(block)
        sink.write(part(picture(64, 4, facts_of()), slice(0, 3)))
    heights = {path.name: len(read(path)) for path in tmp_path.iterdir()}
    wrong = {2: 10, 3: 10, 4: 6, 5: 2, 6: 7, 7: 8, 9: 3}
    assert heights == {"000001.png": 10, "000008.png": 4} | {f"{n:06}-incomplete.png": h for n, h in wrong.items()}
    np.testing.assert_array_equal(read(tmp_path / "000006-incomplete.png"), blocks[4].values[:7])


def test_lines_without_an_end_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 8 * 36)
    with Pictures(tmp_path, facts_of()) as sink:
        sink.write(block_of(0, 20, facts_of()))
    assert [len(read(path)) for path in sorted(tmp_path.iterdir())] == [8, 8, 4]
    assert all("incomplete" in name for name in names(tmp_path))


def test_what_stands_for_one_is_white(tmp_path: Path) -> None:
    facts = facts_of(np.uint16, 4095)
    block = picture(0, 2, facts)
    block.values[0, :, :4] = [0, 2048, 4095, 5000]
    with Pictures(tmp_path, facts) as sink:
        sink.write(block)
    assert read(tmp_path / "000001.png")[0, 0, :4].tolist() == [0, 32776, 65535, 65535]


@pytest.mark.parametrize("facts", [facts_of(bands=31), facts_of(np.float32, None)])
def test_other_lines_are_refused(tmp_path: Path, facts: StreamFacts) -> None:
    with pytest.raises(InputError, match=r"pictures are made of 3 bands of 8 or 16 bits.*--restored"):
        Pictures(tmp_path, facts)
    with pytest.raises(InputError, match="no such folder"):
        Pictures(tmp_path / "none", facts_of())


class Losing(Watch):
    """Loses lines of the photographs that it reads, by their place among all."""

    def __init__(self, path: Path, lost: set[int]) -> None:
        super().__init__(path, Folder(path, 0.6), SourceOptions(idle_seconds=0.6))
        self._lost, self._place = lost, 0

    def read(self, line: Line, timeout: float) -> Event:
        event = super().read(line, timeout)
        if not isinstance(event, Taken):
            return event
        self._place += 1
        return Missing(event.frame_id, 1, "lost") if self._place - 1 in self._lost else event


def test_a_stream_with_lost_lines_makes_whole_pictures_of_the_others(tmp_path: Path) -> None:
    arrays = [np.random.default_rng(n).integers(0, 120, (20, 20, 3)).astype(np.uint8) for n in range(4)]
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "in" / f"{number}.png")
    # One line of the second, which is made of its neighbours, and the end of the third.
    lost = {26, *range(50, 60)}
    with load_bundle(known_bundle(tmp_path / "bundle", gain=2)) as bundle, Losing(tmp_path / "in", lost) as source:
        sink = Pictures(tmp_path / "out", StreamFacts(source.format))
        result = open_stream(bundle, source, sinks=[sink]).run()
    assert not result.failures and result.count.incomplete == 11
    heights = {path.name: len(read(path)) for path in (tmp_path / "out").iterdir()}
    assert heights == {"000001.png": 20, "000002-incomplete.png": 20, "000003-incomplete.png": 10, "000004.png": 20}
    for number in (1, 4):
        found = np.asarray(Image.open(tmp_path / f"out/{number:06}.png"))
        np.testing.assert_array_equal(found, 2 * arrays[number - 1])
