"""Calibration sets: the same frames for the same seed, two parts that share no cube, and cubes that are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.cubes import Wanted
from calibration.dataset import AS_FLOWN, Asked, CalibrationSet, Sample, calibration_set
from calibration.degradations import TRAINING
from calibration.measuring import CLEAN, TASKS, Measuring
from runtime.errors import InputError
from runtime.metrics import prompt_metrics
from runtime.prompts import Prompts
from runtime.signature import Prompt
from tests.contracts.engine import assert_equal
from tests.contracts.graphs import damp_like

Float32 = NDArray[np.float32]
WANTED = Wanted(bands=4)
SIZE = (16, 16)
MEASURING = Measuring(Prompts(damp_like(4, *SIZE)))


def scene(seed: int, bands: int = 4, lines: int = 40, samples: int = 40) -> Float32:
    """A cube [lines, samples, bands] in [0, 1] that no other seed has."""
    return np.random.default_rng(seed).uniform(0.1, 0.9, (lines, samples, bands)).astype(np.float32)


def folder_of(path: Path, count: int, **shape: int) -> Path:
    path.mkdir(exist_ok=True)
    for seed in range(count):
        np.save(path / f"cube{seed}.npy", scene(seed, **shape))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cubes of 4 bands and 40 x 40 pixels."""
    return folder_of(tmp_path_factory.mktemp("cubes"), 6)


def sized(lines: int, samples: int) -> Measuring:
    return Measuring(Prompts(damp_like(4, lines, samples)))


def drawn(source: object, size: tuple[int, int] = SIZE, wanted: Wanted = WANTED, **asked: Any) -> CalibrationSet:
    return calibration_set(Asked(str(source), **asked), wanted, sized(*size))


def all_samples(found: CalibrationSet, kept: Path | None = None) -> list[Sample]:
    return [*found.samples(found.fit, kept), *found.samples(found.judge, kept)]


def assert_same_frames(ones: list[Sample], others: list[Sample]) -> None:
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others, strict=True):
        assert one.origin == other.origin and one.sha256 == other.sha256
        assert_equal(one.feeds, other.feeds)
        np.testing.assert_array_equal(one.truth, other.truth)


def test_the_same_seed_gives_the_same_frames(folder: Path) -> None:
    one, other = (drawn(folder, seed=3) for _ in range(2))
    assert one.digest() == other.digest() and (one.fit, one.judge) == (other.fit, other.judge)
    assert_same_frames(all_samples(one), all_samples(other))


def test_another_seed_gives_others(folder: Path) -> None:
    sets = [drawn(folder, seed=seed) for seed in range(4)]
    assert len({s.digest() for s in sets}) == 4
    assert len({tuple(s.fit) for s in sets}) == 4
    assert len({frozenset(o.cube for o in s.judge) for s in sets}) > 1
    hashes = [{s.sha256 for s in all_samples(each)} for each in sets[:2]]
    assert not hashes[0] & hashes[1]


def test_a_frame_does_not_depend_on_what_was_made_before_it(folder: Path) -> None:
    found = drawn(folder)
    whole = {s.origin: s.sha256 for s in all_samples(found)}
    for origin in (found.fit[-1], found.judge[3], found.fit[5]):
        (alone,) = found.samples([origin])
        assert alone.sha256 == whole[origin]


def test_the_digest_is_of_the_cubes_and_not_of_where_they_lie(folder: Path, tmp_path: Path) -> None:
    moved = folder_of(tmp_path / "moved", 6)
    assert drawn(moved).digest() == drawn(folder).digest()
    changed = scene(0)
    changed[0, 0, 0] += 0.001
    np.save(moved / "cube0.npy", changed)
    assert drawn(moved).digest() != drawn(folder).digest()


def test_fit_and_judge_share_no_cube(folder: Path) -> None:
    for seed in range(5):
        for judged in (0, 1, 2, 9):
            found = drawn(folder, seed=seed, judged=judged, samples=30)
            fit, judge = ({o.cube for o in part} for part in (found.fit, found.judge))
            assert not fit & judge
            assert len(judge) == {0: 1, 1: 1, 2: 2, 9: 3}[judged]
            assert len(fit) == 6 - len(judge) and set(found.cubes) == fit | judge


# With 1, 2 or 5 cubes to fit, some tasks never come up (dataset.py, `tasks[(i + i // len(fitted)) % len(tasks)]`: where
# the number of cubes and one shares a factor with the six tasks): of two cubes only noise, sr and bandloss are fitted.
@pytest.mark.parametrize("cubes", range(2, 9))
def test_every_training_task_and_clean_frames_are_fitted(tmp_path: Path, cubes: int) -> None:
    for judged in (1, 2):
        found = drawn(folder_of(tmp_path / "few", cubes), judged=judged, samples=24)
        tasks = [o.task for o in found.fit]
        assert len(tasks) == 24
        assert set(tasks) == set(MEASURING.fit) == {*TRAINING, CLEAN}
        assert min(map(tasks.count, MEASURING.fit)) >= 2


def test_a_cube_meets_several_tasks_and_is_read_once(folder: Path) -> None:
    found = drawn(folder, samples=24)
    names = [o.cube for o in found.fit]
    assert all(len({o.task for o in found.fit if o.cube == name}) >= 4 for name in names)
    opened: list[str] = []

    def read(name: str) -> Float32:
        opened.append(name)
        return found.read(name)

    all_samples(replace(found, read=read))
    assert opened == list(dict.fromkeys(names)) + list(dict.fromkeys(o.cube for o in found.judge))


def test_each_judged_cube_meets_all_seven_tasks(folder: Path) -> None:
    found = drawn(folder, judged=2)
    names = dict.fromkeys(o.cube for o in found.judge)
    assert [(o.cube, o.task) for o in found.judge] == [(name, task) for name in names for task in TASKS]
    assert len(TASKS) == 7 and len(names) == 2


def test_a_frame_is_what_it_says(folder: Path) -> None:
    found = drawn(folder)
    by_task: dict[str, list[Sample]] = {}
    for sample in all_samples(found):
        o = sample.origin
        cube = np.load(folder / f"{o.cube}.npy").transpose(2, 0, 1)
        truth = cube[:, o.line : o.line + 16, o.sample : o.sample + 16]
        assert sample.feeds["frame"].shape == (1, 4, 16, 16) and sample.feeds["frame"].dtype == np.float32
        np.testing.assert_array_equal(sample.truth, truth)
        np.testing.assert_array_equal(sample.feeds["metrics"][0], prompt_metrics(sample.feeds["frame"][0], "paper6"))
        assert sample.sha256 == hashlib.sha256(sample.feeds["frame"].tobytes()).hexdigest()
        assert np.array_equal(sample.feeds["frame"][0], truth) == (o.task == CLEAN)
        by_task.setdefault(o.task, []).append(sample)
    # bandloss: of four bands one is lost; inpaint: most elements are.
    assert all((~s.feeds["frame"][0].any(axis=(1, 2))).sum() >= 1 for s in by_task["bandloss"])
    assert all(0.6 < np.mean(s.feeds["frame"] == 0) < 0.9 for s in by_task["inpaint"])
    places = {(o.line, o.sample) for o in (*found.fit, *found.judge)}
    assert len(places) > 20 and max(max(p) for p in places) > 20


def test_kept_frames_are_taken_again(folder: Path, tmp_path: Path) -> None:
    found = drawn(folder)
    fresh = all_samples(found)
    assert_same_frames(all_samples(found, tmp_path), fresh)
    assert len(list(tmp_path.iterdir())) == len({s.origin for s in fresh})

    def unread(name: str) -> Float32:
        raise AssertionError(name)

    assert_same_frames(all_samples(replace(found, read=unread), tmp_path), fresh)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no archive": lambda data: b"frames" * 200,
    "another value": lambda data: data[:600] + bytes([data[600] ^ 4]) + data[601:],
    "said to be encrypted": lambda data: entry(data, 8, 1),
    "said to be compressed": lambda data: entry(data, 10, 77),
    "said to be newer": lambda data: entry(data, 6, 210),
}


def entry(data: bytes, offset: int, value: int) -> bytes:
    """The archive with a byte of its first central entry changed."""
    at = data.index(b"PK\x01\x02") + offset
    return data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_frame_is_made_again(folder: Path, tmp_path: Path, damage: str) -> None:
    found = drawn(folder, samples=4)
    fresh = list(found.samples(found.fit, tmp_path))
    for file in tmp_path.iterdir():
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert_same_frames(list(found.samples(found.fit, tmp_path)), fresh)
    opened: list[str] = []

    def read(name: str) -> Float32:
        opened.append(name)
        return found.read(name)

    assert_same_frames(list(replace(found, read=read).samples(found.fit, tmp_path)), fresh)
    assert not opened, "what was made again was not kept"


def test_sets_that_differ_share_no_kept_frame(folder: Path, tmp_path: Path) -> None:
    asked = Asked(str(folder), samples=6)
    sets = [
        calibration_set(asked, WANTED, sized(*SIZE)),
        calibration_set(asked, WANTED, sized(12, 20)),
        calibration_set(replace(asked, seed=1), WANTED, sized(*SIZE)),
    ]
    for found in sets:
        assert_same_frames(all_samples(found, tmp_path), all_samples(found))


def test_kept_frames_have_the_constants_and_the_instrument_of_the_set_that_asks(folder: Path, tmp_path: Path) -> None:
    taken = Prompt("code", (1, 2), "constant", "prompts/code.npy")
    signature = replace(damp_like(4, *SIZE), prompts=(taken,))

    def dark(arrays: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
        return clean / 2

    def bright(arrays: Mapping[str, Float32], task: str, clean: Float32, rng: np.random.Generator) -> Float32:
        return clean * 2

    for code, measure, factor in ((0, dark, 0.5), (1, dark, 0.5), (1, bright, 2)):
        given = np.full((1, 2), code, np.float32)
        way = Measuring(Prompts(signature, {"code": given}), ("one",), measure)
        for sample in all_samples(calibration_set(Asked(str(folder), samples=3), WANTED, way), tmp_path):
            np.testing.assert_array_equal(sample.feeds["code"], given)
            assert sample.truth is not None
            np.testing.assert_array_equal(sample.feeds["frame"][0], sample.truth * np.float32(factor))


def test_kept_frames_have_the_metrics_of_the_set_that_asks(folder: Path, tmp_path: Path) -> None:
    asked = Asked(str(folder), samples=3)
    for metric_set, count in (("paper6", 6), ("reference15", 15)):
        found = calibration_set(asked, WANTED, Measuring(Prompts(damp_like(4, *SIZE, metrics=metric_set))))
        assert {s.feeds["metrics"].shape for s in found.samples(found.fit, tmp_path)} == {(1, count)}


@pytest.mark.parametrize("size", [(8, 24), (40, 40), (33, 9), (64, 16)])
def test_frames_of_another_size_stay_inside_the_cube(folder: Path, size: tuple[int, int]) -> None:
    found = drawn(folder)
    other = found.made_by(sized(*size))
    assert other.size == size and found.size == SIZE
    assert [(o.cube, o.task, o.band) for o in other.fit] == [(o.cube, o.task, o.band) for o in found.fit]
    for before, after in zip((*found.fit, *found.judge), (*other.fit, *other.judge), strict=True):
        assert after.line == min(before.line, max(0, 40 - size[0]))
        assert after.sample == min(before.sample, max(0, 40 - size[1]))
    for sample in other.samples(other.fit[:3]):
        assert sample.feeds["frame"].shape == (1, 4, *size)
    assert (other.digest() == found.digest()) == (size == SIZE)


def test_cubes_smaller_than_a_frame_are_mirrored(tmp_path: Path) -> None:
    found = drawn(folder_of(tmp_path, 2, lines=10, samples=12), samples=6)
    for sample in all_samples(found):
        assert (sample.origin.line, sample.origin.sample) == (0, 0)
        assert sample.truth is not None and sample.truth.shape == (4, 16, 16)
        np.testing.assert_array_equal(sample.truth[:, 10:], sample.truth[:, 3:9][:, ::-1])
        np.testing.assert_array_equal(sample.truth[:, :, 12:], sample.truth[:, :, 7:11][:, :, ::-1])


def test_cubes_as_flown_are_taken_as_they_are_and_simulated_ones_judge(folder: Path) -> None:
    found = drawn(folder, cubes="as_flown", judged=2, samples=12)
    assert {o.task for o in found.fit} == {AS_FLOWN}
    assert {o.cube for o in found.fit} == {f"cube{i}" for i in range(6)}
    for sample in found.samples(found.fit):
        o = sample.origin
        cube = np.load(folder / f"{o.cube}.npy").transpose(2, 0, 1)
        np.testing.assert_array_equal(sample.feeds["frame"][0], cube[:, o.line : o.line + 16, o.sample : o.sample + 16])
        assert sample.truth is None
    assert len(found.judge) == 2 * len(TASKS) and {o.cube for o in found.judge}.isdisjoint(o.cube for o in found.fit)
    judged = list(found.samples(found.judge))
    assert all(s.truth is not None and s.feeds["frame"].shape == (1, 4, *SIZE) for s in judged)
    assert_same_frames(judged, list(drawn(folder, cubes="as_flown", judged=2, samples=12).samples(found.judge)))


def test_frames_as_flown_are_kept_without_a_truth(folder: Path, tmp_path: Path) -> None:
    found = drawn(folder, cubes="as_flown", samples=3)
    fresh = list(found.samples(found.fit, tmp_path))
    assert_same_frames(list(found.samples(found.fit, tmp_path)), fresh)
    assert all(s.truth is None for s in fresh)


def test_simulated_scenes_need_no_folder() -> None:
    found = drawn("simulated", samples=24)
    assert found.digest() == drawn("simulated", samples=24).digest() != drawn("simulated", samples=24, seed=1).digest()
    assert not found.skipped and len(found.cubes) == 6
    assert {o.task for o in found.fit} == set(MEASURING.fit) and {o.task for o in found.judge} == set(TASKS)
    assert {o.cube for o in found.fit}.isdisjoint(o.cube for o in found.judge)
    frames = all_samples(found)
    assert len({s.sha256 for s in frames if s.origin.task == CLEAN}) > 1
    assert all(s.feeds["frame"].shape == (1, 4, *SIZE) for s in frames)


def nan_cube(path: Path) -> None:
    cube = scene(7)
    cube[3, 4, 1] = np.nan
    np.save(path, cube)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "holes": (nan_cube, "not finite in 1 pixel"),
    "more bands": (lambda path: np.save(path, scene(7, bands=5)), "has 5 bands, the network restores 4"),
    "fewer bands": (lambda path: np.save(path, scene(7, bands=3)), "has 3 bands, the network restores 4"),
    "garbage": (lambda path: path.write_bytes(b"not an array at all" * 9), ""),
    "cut short": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), ""),
    "flat": (lambda path: np.save(path, np.full((40, 40, 4), 0.5, np.float32)), "holds no picture"),
    "one line": (lambda path: np.save(path, scene(7, lines=1)), "holds no picture"),
    "too bright": (lambda path: np.save(path, scene(7) * np.float32(1e8)), "where 1.0 is expected"),
    "integers without a scale": (lambda path: np.save(path, (scene(7) * 9999).astype(np.int16)), ""),
    "two axes": (lambda path: np.save(path, scene(7)[0]), ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_cube_that_cannot_be_used_is_refused_or_skipped(tmp_path: Path, kind: str) -> None:
    make, words = BAD[kind]
    folder_of(tmp_path, 3)
    make(tmp_path / "cube1x.npy")
    with pytest.raises(InputError, match="cannot be calibrated with") as refused:
        drawn(tmp_path)
    assert words in refused.value.problem and "cube1x.npy" in str(refused.value)
    assert "on_bad: skip" in refused.value.remedy
    found = drawn(tmp_path, on_bad="skip")
    assert list(found.skipped) == ["cube1x.npy"] and found.skipped["cube1x.npy"]
    assert words in found.skipped["cube1x.npy"]
    assert set(found.cubes) == {"cube0", "cube1", "cube2"}
    (tmp_path / "cube1x.npy").unlink()
    without = drawn(tmp_path, on_bad="skip")
    assert (found.fit, found.judge) == (without.fit, without.judge)


def test_fewer_than_two_cubes_are_refused_with_counts(tmp_path: Path) -> None:
    folder_of(tmp_path, 1)
    with pytest.raises(InputError, match=r"holds 1 cube that can be used, 0 skipped.*at least 2"):
        drawn(tmp_path)
    nan_cube(tmp_path / "holes.npy")
    (tmp_path / "noise.npy").write_bytes(b"garbage")
    with pytest.raises(
        InputError, match=r"holds 1 cube that can be used, 2 skipped; holes.npy values are not finite in 1 pixel"
    ):
        drawn(tmp_path, on_bad="skip")
    (tmp_path / "cube0.npy").unlink()
    with pytest.raises(InputError, match=r"holds 0 cubes that can be used, 2 skipped"):
        drawn(tmp_path, on_bad="skip")


@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_a_folder_without_cubes_is_refused(tmp_path: Path, on_bad: str) -> None:
    (tmp_path / "notes.txt").write_text("no cube")
    with pytest.raises(InputError, match="no cubes there") as empty:
        drawn(tmp_path, on_bad=on_bad)
    assert empty.value.key == "--calibration"
    with pytest.raises(InputError, match="no such folder"):
        drawn(tmp_path / "nowhere", on_bad=on_bad)


def test_groups_of_bands_are_taken_from_cubes_with_more(tmp_path: Path) -> None:
    folder_of(tmp_path, 3, bands=9)
    with pytest.raises(InputError, match="has 9 bands, the network restores 4"):
        drawn(tmp_path)
    found = drawn(tmp_path, band_groups=True, samples=30)
    assert {o.band for o in found.fit} == set(range(6))
    for sample in found.samples(found.fit):
        o = sample.origin
        cube = np.load(tmp_path / f"{o.cube}.npy").transpose(2, 0, 1)
        part = cube[o.band : o.band + 4, o.line : o.line + 16, o.sample : o.sample + 16]
        np.testing.assert_array_equal(sample.truth, part)
    np.save(tmp_path / "grey.npy", scene(5, bands=3))
    with pytest.raises(InputError, match="has 3 bands"):
        drawn(tmp_path, band_groups=True)


# The remedy that `_refuse_unfit` gives is replaced in dataset.py `_survey`: nobody is told of band_groups.
def test_who_has_cubes_with_more_bands_is_told_of_band_groups(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="band_groups: true"):
        drawn(folder_of(tmp_path, 3, bands=9))


def test_every_cube_that_was_looked_at_is_told(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    calibration_set(Asked(str(folder)), WANTED, sized(*SIZE), lambda done, of: seen.append((done, of)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_doubts_about_the_scale_are_handed_on(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    np.save(tmp_path / "dark.npy", scene(9) / np.float32(1000))
    found = drawn(tmp_path)
    assert len(found.doubts) == 1 and "dark.npy" in found.doubts[0]
