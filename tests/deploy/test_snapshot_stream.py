"""Frames of a snapshot spectrometer in flight: from files, the simulator and a folder, each accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from export.networks import network_of, save_checkpoint
from export.networks.mst import ARCHITECTURE, MstConfig
from runtime import load_bundle
from runtime.errors import InputError
from runtime.files import read_cube, write_cube
from runtime.record.index import read_index
from runtime.simulation import cassi
from runtime.sources import SourceOptions, open_source
from tests.contracts.command import assert_failed, invoke
from tests.contracts.spectrometer import spectrometer
from tests.export.snapshots import SIDE, small_mask, snapshot_network

Capsys = pytest.CaptureFixture[str]
WIDE = SIDE + cassi.DISPERSED


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    folder = tmp_path_factory.mktemp("mst")
    net = network_of(snapshot_network(MstConfig((1, 1)), small_mask()))
    path = save_checkpoint(net, folder / "mst.safetensors", scale=2000)
    build(with_overrides(Config(), {"model.checkpoint": str(path)}), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def measurement(tmp_path: Path) -> np.ndarray:
    """[lines, samples + 54], in `m.npy` too."""
    clean = np.random.default_rng(0).random((28, SIDE, SIDE), np.float32)
    made = cassi.measure(clean, small_mask())
    np.save(tmp_path / "m.npy", made)
    return made


def restored(bundle: Path, measured: np.ndarray) -> np.ndarray:
    with load_bundle(bundle) as loaded:
        return np.asarray(loaded.restore(measured[None]).cube)


@pytest.mark.parametrize("name", ["m.npy", "m.hdr", "m.mat", "m.tif", "m.png"])
def test_a_measurement_becomes_a_cube_with_its_wavelengths(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys, name: str
) -> None:
    if name == "m.mat":
        from scipy.io import savemat

        savemat(tmp_path / name, {"meas": measurement, "gain": 2.0})
    elif name == "m.hdr":
        write_cube(tmp_path / name, measurement[None])
    elif name in ("m.tif", "m.png"):
        # Its scale is the bundle's: the white of a picture stands for nothing here.
        numbers = np.rint(2000 * measurement).astype(np.uint16)
        write_cube(tmp_path / name, numbers[None])
        measurement = numbers / np.float32(2000)
    done = invoke(capsys, "run", bundle, tmp_path / name, "--out", tmp_path / "cube.hdr", "--json")
    assert done.code == 0, done.err
    cube = read_cube(tmp_path / "cube.hdr")
    assert cube.cube.shape == (28, SIDE, SIDE) and cube.wavelengths == pytest.approx(cassi.WAVELENGTHS)
    np.testing.assert_allclose(cube.cube, restored(bundle, measurement), atol=1e-6)


def test_a_cube_has_no_type_and_scale_of_its_measurement(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    asked = "run", bundle, tmp_path / "m.npy", "--out", tmp_path / "cube.npy", "--output-type"
    assert_failed(invoke(capsys, *asked, "input"), 2, "--output-type", "28 bands", "float32")
    assert not (tmp_path / "cube.npy").exists()
    assert invoke(capsys, *asked, "float32").code == 0


def test_what_is_no_measurement_is_refused_in_one_line(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((SIDE, WIDE + 2), np.float32))
    for name, said in (("wide", f"{SIDE}x{WIDE + 2}"),):
        done = invoke(capsys, "run", bundle, tmp_path / f"{name}.npy", "--out", tmp_path / "out.npy")
        assert_failed(done, 2, said)
        assert not (tmp_path / "out.npy").exists()


def test_the_frame_that_the_end_cuts_off_is_told_as_that(bundle: Path, tmp_path: Path, capsys: Capsys) -> None:
    source = f"sim:snapshot,frames=2,count={2 * SIDE + 5}"
    (tmp_path / "waits.yaml").write_text("stream:\n  policy: block\n")
    words = ("--source", source, "--restored", tmp_path / "out", "--config", tmp_path / "waits.yaml", "--json")
    done = invoke(capsys, "stream", bundle, *words)
    frames = done.json["frames_by_fate"]
    assert done.code == 0 and (frames["restored"], frames["unfit"], frames["cut_off"]) == (2, 0, 1), done.err
    assert "5 lines were not restored: 1 frames, since the end cut them off" in done.err
    log = (tmp_path / "out/stream.jsonl").read_text()
    assert '"why":"the end cut it off"' in log and '"kind":"unfit"' not in log


@pytest.mark.parametrize("name", ["m.npy", "m.tif"])
def test_a_measurement_is_inspected_as_it_is_restored(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys, name: str
) -> None:
    if name == "m.tif":
        write_cube(tmp_path / name, np.rint(2000 * measurement).astype(np.uint16)[None])
        done = invoke(capsys, "inspect", tmp_path / name, "--json")
        assert done.json["shape"] == [3, SIDE, WIDE] and "--bundle" in done.json["notes"][0]
    done = invoke(capsys, "inspect", tmp_path / name, "--bundle", bundle, "--json")
    assert done.code == 0 and done.json["shape"] == [1, SIDE, WIDE], done.err
    ran = invoke(capsys, "run", bundle, tmp_path / name, "--out", tmp_path / "cube.npy", "--json")
    assert done.json["scale"] == (ran.json["scale"] or 1) == (2000 if name == "m.tif" else 1)
    measurement[3, 3] = np.nan
    np.save(tmp_path / "nan.npy", measurement)
    done = invoke(capsys, "inspect", tmp_path / "nan.npy", "--bundle", bundle)
    assert done.code == 1 and "no place for its missing pixels" in done.err


@pytest.mark.parametrize("kind", ["npy", "mat", "hdr"])
@pytest.mark.parametrize("what", ["cube", "nan"])
def test_what_is_said_of_no_measurement_leads_to_one(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys, what: str, kind: str
) -> None:
    file, odd = tmp_path / f"odd.{kind}", measurement.copy()
    odd[3, 4] = np.nan
    array = np.ones((SIDE, WIDE, 28), np.float32) if what == "cube" else odd
    if kind == "hdr":
        write_cube(file, array.transpose(2, 0, 1) if what == "cube" else array[None])
    else:
        as_file(file, array)
    flags = {"cube": ["--layout", "lines,samples,bands"], "nan": ["--ignore-value", "nan"]}
    for more in ([], flags[what]):
        done = invoke(capsys, "run", bundle, file, "--out", tmp_path / "out.npy", *more)
        assert_failed(done, 2, {"cube": "of one band", "nan": "radiometry.bad_pixels"}[what])
        assert "--" not in done.err and not (tmp_path / "out.npy").exists()
    if (kind, what) == ("hdr", "cube"):
        streamed = invoke(capsys, "stream", bundle, "--source", f"envi:{file}", "--restored", tmp_path / "out")
        assert_failed(streamed, 2, "give measurements of one band")


def as_file(file: Path, array: np.ndarray) -> None:
    from scipy.io import savemat

    np.save(file, array) if file.suffix == ".npy" else savemat(file, {"data": array})


def test_every_frame_of_the_simulator_is_accounted_for(bundle: Path, tmp_path: Path, capsys: Capsys) -> None:
    frames = 5
    source = f"sim:snapshot,frames=2,rate=100,count={frames * SIDE}"
    (tmp_path / "deploy.yaml").write_text("stream: {policy: block}\n")
    done = invoke(capsys, "stream", bundle, "--source", source, "--record", tmp_path / "raw", "--restored",
                  tmp_path / "out", "--config", tmp_path / "deploy.yaml", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["lines"]["restored"] == frames * SIDE and done.json["frames"] == frames
    raw, made = read_cube(tmp_path / "raw/lines.hdr"), read_cube(tmp_path / "out/restored.hdr")
    assert raw.cube.shape == (1, frames * SIDE, WIDE) and made.cube.shape == (28, frames * SIDE, SIDE)
    assert made.wavelengths == pytest.approx(cassi.WAVELENGTHS, abs=0.01)
    for number in range(frames):
        rows = slice(number * SIDE, (number + 1) * SIDE)
        own = restored(bundle, raw.cube[0, rows] / np.float32(2000))
        np.testing.assert_allclose(made.cube[:, rows], own, atol=1e-5)


def test_a_frame_with_a_gap_is_lost_and_the_next_in_its_place_again(
    bundle: Path, tmp_path: Path, capsys: Capsys
) -> None:
    source, raw = f"sim:snapshot,frames=2,rate=400,count={20 * SIDE},lost=20,seed=1", tmp_path / "raw"
    (tmp_path / "deploy.yaml").write_text("stream: {policy: block}\n")
    config = ("--config", tmp_path / "deploy.yaml", "--json")
    done = invoke(
        capsys, "stream", bundle, "--source", source, "--record", raw, "--restored", tmp_path / "out", *config
    )
    assert done.code == 0, done.err
    index, recorded = read_index(raw / "lines.idx"), read_cube(raw / "lines.hdr").cube[0]
    # A frame is whole where its lines came one after the other, from a multiple of its height on.
    starts = np.flatnonzero(index["frame_id"] % SIDE == 0)
    whole = [at for at in starts if (np.diff(index["frame_id"][at : at + SIDE].astype(int)) == 1).sum() == SIDE - 1]
    lines, frames = done.json["lines"], done.json["frames_by_fate"]
    assert lines["in"] == lines["restored"] + lines["dropped"] + lines["incomplete"] and lines["incomplete"] > 0
    assert frames["restored"] == len(whole) and 0 < frames["unfit"] <= 20 - len(whole), (frames, whole)
    # What was recorded gives the same again, since its index tells where frames begin.
    again = invoke(capsys, "stream", bundle, "--source", f"envi:{raw / 'lines.hdr'}", "--restored", tmp_path / "again",
                   "--scale", 2000, "--json")  # fmt: skip
    assert again.code == 0 and again.json["frames_by_fate"]["restored"] == len(whole), again.err
    for folder in ("out", "again"):
        made = read_cube(tmp_path / folder / "restored.hdr").cube
        assert made.shape[1] == len(whole) * SIDE
        for number, at in enumerate(whole):
            own = restored(bundle, recorded[at : at + SIDE] / np.float32(2000))
            np.testing.assert_allclose(made[:, number * SIDE : (number + 1) * SIDE], own, atol=1e-5)
    (raw / "lines.idx").unlink()
    done = invoke(capsys, "stream", bundle, "--source", f"envi:{raw / 'lines.hdr'}", "--restored", tmp_path / "no")
    assert_failed(done, 2, "lines.hdr", f"whole frames of {SIDE} lines")


def test_frames_that_hold_nothing_or_no_numbers_are_lost(bundle: Path, tmp_path: Path, capsys: Capsys) -> None:
    good = cassi.measure(np.random.default_rng(0).random((28, SIDE, SIDE), np.float32), small_mask())
    torn, dead = good.copy(), np.zeros_like(good)
    torn[3, 5] = np.nan
    write_cube(tmp_path / "m.hdr", np.concatenate([good, torn, dead, good])[None])
    done = invoke(capsys, "stream", bundle, "--source", f"envi:{tmp_path / 'm.hdr'}", "--restored", tmp_path / "out",
                  "--ignore-value", "none", "--json")  # fmt: skip
    assert done.code == 0 and done.json["lines"]["dropped"] == 2 * SIDE, done.err
    assert done.json["frames_by_fate"]["unfit"] == 2
    made, own = read_cube(tmp_path / "out/restored.hdr").cube, restored(bundle, good)
    np.testing.assert_allclose(made, np.concatenate([own, own], axis=1), atol=1e-5)


def test_pictures_of_another_height_are_no_frames(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "in").mkdir()
    numbers = np.rint(measurement * 2000).astype(np.uint16)[None]
    for name, picture in (("a", numbers), ("b", np.concatenate([numbers, numbers], axis=1)), ("c", numbers[:, :12])):
        write_cube(tmp_path / "in" / f"{name}.tif", picture)
    (tmp_path / "deploy.yaml").write_text("stream: {idle_seconds: 1}\n")
    done = invoke(capsys, "stream", bundle, "--source", f"watch-photos:{tmp_path / 'in'}", "--restored",
                  tmp_path / "out", "--config", tmp_path / "deploy.yaml", "--json")  # fmt: skip
    assert done.code == 0 and done.json["lines"]["restored"] == done.json["lines"]["in"] == SIDE, done.err
    assert "2 files were skipped" in done.err
    assert f"one frame of {SIDE} lines" in (tmp_path / "out" / "stream.jsonl").read_text()


@pytest.mark.parametrize(("mask", "told"), [("tall.npy", "frames of 16"), ("missing.npy", "missing.npy")])
def test_the_simulator_takes_a_mask_of_the_frames_height(
    bundle: Path, tmp_path: Path, capsys: Capsys, mask: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("tall.npy", small_mask(SIDE + 4, SIDE))
    done = invoke(capsys, "stream", bundle, "--source", f"sim:snapshot,mask={mask}", "--restored", tmp_path / "out")
    assert_failed(done, 2, told)


def test_an_instruments_mask_is_looked_at_before_it_is_used() -> None:
    square = np.ones((SIDE, SIDE), np.float32)
    for mask in (np.zeros(5, np.float32), 1e30 * square, -3 * square):
        with pytest.raises(InputError, match="mask"):
            open_source("sim:snapshot", SourceOptions(instrument={"mask": mask}, frame=SIDE))
        with pytest.raises(InputError, match="mask"):
            ARCHITECTURE.measure({"mask": mask}, "snapshot", np.zeros((28, SIDE, SIDE), np.float32), None)
    with pytest.raises(InputError, match="keeps no mask"):
        open_source("sim:snapshot", SourceOptions(frame=SIDE))


@pytest.mark.parametrize("source", ["watch", "watch-photos"])
def test_a_folder_of_measurements_is_streamed(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys, source: str
) -> None:
    (tmp_path / "in").mkdir()
    odd = {"wide": (SIDE, WIDE + 2), "high": (SIDE + 2, WIDE)}
    for name, shape in odd.items():
        write_cube(tmp_path / f"in/{name}.{'hdr' if source == 'watch' else 'tif'}", np.ones((1, *shape), np.uint16))
    time.sleep(0.02)
    for number in range(2):
        numbers = np.rint((1 - 0.3 * number) * measurement * 2000).astype(np.uint16)[None]
        if source == "watch":
            write_cube(tmp_path / "in" / f"{number}.hdr", numbers, fields={"reflectance scale factor": "2000"})
        else:
            write_cube(tmp_path / "in" / f"{number}.tif", numbers)
    (tmp_path / "deploy.yaml").write_text("stream: {idle_seconds: 1}\n")
    done = invoke(capsys, "stream", bundle, "--source", f"{source}:{tmp_path / 'in'}", "--restored", tmp_path / "out",
                  "--config", tmp_path / "deploy.yaml", "--json")  # fmt: skip
    assert done.code == 0, done.err
    log = (tmp_path / "out/stream.jsonl").read_text()
    assert all(f"skipped {name}" in log for name in odd)
    made = read_cube(tmp_path / "out/restored.hdr").cube
    assert made.shape == (28, 2 * SIDE, SIDE)
    own = restored(bundle, np.rint(0.7 * measurement * 2000).astype(np.float32) / 2000)
    np.testing.assert_allclose(made[:, SIDE:], own, atol=1e-5)


@pytest.mark.data
def test_an_area_camera_behind_a_coded_aperture_is_streamed(bundle: Path, tmp_path: Path) -> None:
    shots = []
    for seed in range(3):
        clean = np.random.default_rng(seed).random((28, SIDE, SIDE), np.float32)
        shots.append(np.rint(2000 * cassi.measure(clean, small_mask())))
    served, out = np.array(shots, np.uint16), tmp_path / "out"
    camera = "{pixel_format: Mono12, geometry: area, frame_rate: 10}"
    (tmp_path / "deploy.yaml").write_text(f"stream:\n  camera: {camera}\n  scale: 2000\n  drain_seconds: 10\n")
    line = (
        sys.executable, "-m", "deploy", "stream", bundle, "--source", "genicam:127.0.0.1", "--record", out,
        "--restored", out, "--config", tmp_path / "deploy.yaml", "--duration", 3, "--json",
    )  # fmt: skip
    with spectrometer(served, folder=tmp_path) as virtual:
        process = virtual.popen(*line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        told, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    lines = json.loads(told.splitlines()[-1])["lines"]
    assert lines["in"] == lines["restored"] + lines["dropped"] + lines["incomplete"] and lines["restored"] >= 2 * SIDE
    ids, made = read_index(out / "restored.idx")["frame_id"], read_cube(out / "restored.hdr").cube
    for number in range(0, made.shape[1], SIDE):
        found = made[:, number : number + SIDE]
        apart = [np.abs(found - restored(bundle, shot / np.float32(2000))).max() for shot in served]
        assert min(apart) < 1e-5 and not ids[number] % SIDE
        np.testing.assert_array_equal(ids[number : number + SIDE], ids[number] + np.arange(SIDE, dtype=ids.dtype))


def test_dark_and_bad_pixels_are_those_of_the_area_detector(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    rng = np.random.default_rng(0)
    dark = rng.integers(50, 300, (SIDE, WIDE)).astype(np.uint16)
    write_cube(tmp_path / "dark.hdr", np.concatenate([dark - 10, dark + 10])[None])
    bad = np.zeros((SIDE, WIDE), np.uint8)
    # A whole row, which is at its limit, and some elements.
    bad[5], bad[2, 30], bad[9, 3] = 1, 1, 1
    np.save(tmp_path / "bad.npy", bad)
    smooth = np.full((SIDE, WIDE), 0.7, np.float32)
    numbers = np.rint(2000 * smooth).astype(np.uint16) + dark
    numbers[bad > 0] = 4095
    spoilt = numbers.copy()
    spoilt[:, : WIDE // 3] = 4095
    write_cube(tmp_path / "raw.bil.hdr", np.concatenate([numbers, spoilt, numbers])[None])
    radiometry = "{dark: dark.hdr, bad_pixels: bad.npy, saturation: 4095, scale: 2000}"
    (tmp_path / "deploy.yaml").write_text(f"stream:\n  radiometry: {radiometry}\n")
    done = invoke(capsys, "stream", bundle, "--source", f"envi:{tmp_path / 'raw.bil.hdr'}", "--restored",
                  tmp_path / "out", "--config", tmp_path / "deploy.yaml", "--json")  # fmt: skip
    assert done.code == 0 and done.json["lines"]["dropped"] == SIDE, done.err
    assert "the frame is saturated" in (tmp_path / "out" / "stream.jsonl").read_text()
    made = read_cube(tmp_path / "out/restored.hdr").cube
    assert made.shape == (28, 2 * SIDE, SIDE)
    own = restored(bundle, smooth)
    for first in (0, SIDE):
        np.testing.assert_allclose(made[:, first : first + SIDE], own, atol=1e-4)
    np.save(tmp_path / "bad.npy", bad.T)
    done = invoke(capsys, "stream", bundle, "--source", f"envi:{tmp_path / 'raw.bil.hdr'}", "--restored",
                  tmp_path / "no", "--config", tmp_path / "deploy.yaml")  # fmt: skip
    assert_failed(done, 2, "bad.npy", f"[{SIDE}, {WIDE}]")


def test_a_hot_pixel_is_named_or_taken_as_it_is(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    numbers = np.rint(2000 * measurement).astype(np.uint16)
    numbers[4, 9] = 65535
    (tmp_path / "in").mkdir()
    write_cube(tmp_path / "in/hot.tif", numbers[None])
    asked = "run", bundle, tmp_path / "in/hot.tif", "--out", tmp_path / "cube.npy"
    assert_failed(invoke(capsys, *asked), 2, "if 65535 is measured and no mark, say --ignore-value none", "bad_pixels")
    assert invoke(capsys, *asked, "--ignore-value", "none").code == 0
    streamed = "stream", bundle, "--source", f"watch-photos:{tmp_path / 'in'}", "--json"
    (tmp_path / "deploy.yaml").write_text("stream: {idle_seconds: 1}\n")
    done = invoke(capsys, *streamed, "--restored", tmp_path / "a", "--config", tmp_path / "deploy.yaml")
    assert done.json["lines"]["dropped"] == SIDE and "bad_pixels" in done.err
    assert "bad_pixels; if 65535 is measured" in (tmp_path / "a/stream.jsonl").read_text()
    name_bad_pixel(tmp_path)
    done = invoke(capsys, *streamed, "--restored", tmp_path / "b", "--config", tmp_path / "deploy.yaml")
    assert done.code == 0 and done.json["lines"]["restored"] == SIDE, done.err


def test_a_pixel_without_a_number_costs_its_frame_unless_it_is_named(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    measurement[4, 9] = np.nan
    write_cube(tmp_path / "raw.hdr", np.concatenate([measurement, measurement])[None])
    streamed = "stream", bundle, "--source", f"envi:{tmp_path / 'raw.hdr'}", "--json"
    done = invoke(capsys, *streamed, "--restored", tmp_path / "a")
    assert done.json["lines"]["dropped"] == 2 * SIDE and "--ignore-value" not in done.err
    assert "values of the frame are not finite" in (tmp_path / "a/stream.jsonl").read_text()
    name_bad_pixel(tmp_path)
    done = invoke(capsys, *streamed, "--restored", tmp_path / "b", "--config", tmp_path / "deploy.yaml")
    assert done.code == 0 and done.json["lines"]["restored"] == 2 * SIDE, done.err
    assert np.isfinite(read_cube(tmp_path / "b/restored.hdr").cube).all()


def test_a_rerun_tells_every_recorded_line_that_was_not_restored(
    bundle: Path, measurement: np.ndarray, tmp_path: Path, capsys: Capsys
) -> None:
    frames = np.stack([measurement] * 4)
    frames[1, 4, 9] = np.nan
    write_cube(tmp_path / "raw.hdr", frames.reshape(1, -1, WIDE))
    asked = (
        "stream", bundle, "--source", f"envi:{tmp_path / 'raw.hdr'}", "--record", tmp_path / "out", "--restored",
        tmp_path / "out", "--json",
    )  # fmt: skip
    assert invoke(capsys, *asked).json["lines"]["dropped"] == SIDE
    done = invoke(capsys, *asked)
    assert f"lines {SIDE} to {2 * SIDE - 1} of the record were not restored by the runs before" in done.err


def name_bad_pixel(folder: Path) -> None:
    bad = np.zeros((SIDE, WIDE), np.uint8)
    bad[4, 9] = 1
    np.save(folder / "bad.npy", bad)
    radiometry = "{bad_pixels: bad.npy, scale: 2000}"
    (folder / "deploy.yaml").write_text(f"stream: {{idle_seconds: 1, radiometry: {radiometry}}}\n")
