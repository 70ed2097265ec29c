"""`deploy bench`: times that add up, in their order, beside PyTorch's; and what the board says, or does not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.checking import latency as bench
from deploy.checking.latency import Times, bench_frames, latency_ms, measure, split_ms
from deploy.cli import run
from deploy.reporting.plots import latency_plot, thinned
from runtime.board import Reading
from runtime.board_tools import Gpu
from runtime.board_watch import BoardWatch, Spread, Watched
from runtime.bundle import Bundle, load_bundle
from runtime.bundle_files import read_manifest
from runtime.engines import Engine
from runtime.engines.onnxruntime_session import SessionEngine
from runtime.errors import MachineError
from runtime.prompts import Prompts
from tests.contracts.bundles import known_bundle, reseal
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke

Capsys = pytest.CaptureFixture[str]
STEPS = ("metrics", "pre", "engine", "post")


@pytest.fixture(autouse=True)
def still_board(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests do not ask this machine's tools."""
    monkeypatch.setattr("runtime.board.read_board", Reading)
    monkeypatch.setattr(bench, "BoardWatch", partial(BoardWatch, tmp_path_factory.mktemp("board"), ()))


def assert_ordered(latency: dict[str, Any], frames: int) -> None:
    assert set(latency) == {"p50", "p90", "p99", "mean", "frames"} and latency["frames"] == frames
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]


def test_the_figures_belong_together(capsys: Capsys, tiny_bundle: Path) -> None:
    done = invoke(capsys, "bench", tiny_bundle, "--frames", 7, "--warmup", 1, "--threads", 1, "--json")
    assert done.code == 0, done.err
    told = done.json
    assert_finite(told)
    assert_ordered(told["latency_ms"], 7)
    assert told["frames_per_second"] == pytest.approx(1000 / told["latency_ms"]["mean"])
    assert tuple(told["split_ms"]) == STEPS and all(value > 0 for value in told["split_ms"].values())
    assert told["peak_memory_mib"] is None or told["peak_memory_mib"] > 10
    assert told["engine"]["engine"] == "onnxruntime" and told["engine"]["device"] == "CPU, 1 threads"
    assert told["pytorch"] is None
    assert told["precision"] == "fp32"
    assert told["board"]["before"]["temperatures_c"] == {} and told["board"]["before"]["clocks_locked"] is None
    # How many samples a short run gets depends on how busy the computer is.
    during = told["board"]["during"]
    assert during.pop("samples") >= 1
    assert during == {"cpu_mhz": None, "temperatures_c": {}, "power_w": {}, "gpus": []}


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_pytorch_runs_in_turn_with_the_engine(
    capsys: Capsys, tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.torch_engine import TorchEngine

    ran: list[tuple[str, float]] = []
    noted(monkeypatch, SessionEngine, "engine", ran)
    noted(monkeypatch, TorchEngine, "pytorch", ran)
    threads = torch.get_num_threads()
    arguments = ("--checkpoint", tiny_checkpoint, "--frames", 4, "--warmup", 2, "--threads", 1)
    done = invoke(capsys, "bench", tiny_bundle, *arguments, "--json")
    assert done.code == 0, done.err
    told = done.json
    assert_finite(told)
    assert_ordered(told["latency_ms"], 4)
    assert_ordered(told["pytorch"]["latency_ms"], 4)
    assert told["pytorch"]["ratio"] > 0 and told["pytorch"]["engine_ratio"] > 0
    assert told["pytorch"]["engine"]["engine"] == "pytorch" and "1 threads" in told["pytorch"]["engine"]["device"]
    assert torch.get_num_threads() == threads
    names = [name for name, _ in ran]
    assert names[:4] == ["engine", "engine", "pytorch", "pytorch"]
    assert names[4:] == ["engine", "pytorch", "pytorch", "engine"] * 2
    # Both are given the same frame, and the next pair another one.
    frames = [frame for _, frame in ran[4:]]
    assert frames[0::2] == frames[1::2] and len(set(frames[0::2])) == 4


def test_pytorch_runs_as_it_is_told(capsys: Capsys, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    ways = ("--torch-device", "cpu", "--torch-form", "deployment", "--torch-precision", "bf16")
    arguments = ("bench", tiny_bundle, "--checkpoint", tiny_checkpoint, "--frames", 1, "--warmup", 1, "--threads", 1)
    done = invoke(capsys, *arguments, *ways, "--json")
    assert done.code == 0, done.err
    told = done.json["pytorch"]["engine"]
    assert told["form"] == "deployment" and told["computes in"] == "bf16 by autocast"
    assert "CPU, 1 threads, deployment form, bf16 by autocast" in done.err
    # A CPU has no graphs, and nothing else runs in their place.
    error = assert_json_error(invoke(capsys, *arguments, "--torch-form", "graph", "--json"), 3)
    assert "only a GPU has CUDA graphs" in error["message"] and error["value"] == "graph on cpu"
    error = assert_json_error(invoke(capsys, *arguments, "--torch-device", "cuda:63", "--json"), 3)
    assert error["value"] == "cuda:63"
    assert_failed(invoke(capsys, *arguments, "--torch-device", "tpu"), 2, "choose cpu or cuda")
    assert_failed(invoke(capsys, "bench", tiny_bundle, *ways), 2, "--torch-device", "give --checkpoint too")


def noted(monkeypatch: pytest.MonkeyPatch, kind: type[Engine], name: str, ran: list[tuple[str, float]]) -> None:
    """Note the engine's name and the sum of its frame whenever it runs."""
    usual: Callable[..., Any] = kind.infer_impl

    def infer_impl(self: Engine, frame: Any, metrics: Any) -> Any:
        ran.append((name, float(frame.sum())))
        return usual(self, frame, metrics)

    monkeypatch.setattr(kind, "infer_impl", infer_impl)


def test_every_step_is_counted_in_its_own_place(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def held(before: float, work: Callable[..., Any], after: float = 0.0) -> Callable[..., Any]:
        def slower(*arguments: Any, **others: Any) -> Any:
            spend(before)
            result = work(*arguments, **others)
            spend(after)
            return result

        return slower

    cubes = bench_frames(tiny_bundle)
    with load_bundle(tiny_bundle, threads=1) as loaded:
        monkeypatch.setattr(Prompts, "__call__", held(1, Prompts.__call__))
        monkeypatch.setattr(SessionEngine, "infer_impl", held(10, SessionEngine.infer_impl))
        monkeypatch.setattr(Bundle, "restore", held(2, Bundle.restore, 3))
        monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
        measured = measure(loaded, cubes, (3, math.inf), 1)
        monkeypatch.undo()
        # The bundle is left open.
        made, outputs = loaded.engine.infer(golden(tiny_bundle)), loaded.engine.signature.ports.outputs
        assert {name: array.shape for name, array in made.items()} == outputs
    assert measured.times == (Times(1, 2, 10, 3),) * 3
    assert latency_ms(measured.times) == {"p50": 16e3, "p90": 16e3, "p99": 16e3, "mean": 16e3, "frames": 3}
    assert split_ms(measured.times) == {"metrics": 1e3, "pre": 2e3, "engine": 10e3, "post": 3e3}


def golden(bundle: Path) -> dict[str, Any]:
    """What the golden frame's engine is fed with."""
    m = read_manifest(bundle)
    return {name: np.load(bundle / m.golden.arrays[name]) for name in m.signature.ports.inputs}


def test_medians_of_the_steps_are_about_the_latency() -> None:
    rng = np.random.default_rng(0)
    times = tuple(Times(*row) for row in 0.01 + 0.001 * rng.random((101, 4)))
    assert sum(split_ms(times).values()) == pytest.approx(latency_ms(times)["p50"], rel=0.02)
    latency = latency_ms([Times(0, 0, n / 1000, 0) for n in range(1, 102)])
    assert latency == pytest.approx({"p50": 51, "p90": 91, "p99": 100, "mean": 51, "frames": 101})


def test_the_frames_differ_and_are_of_the_bundles_size(tiny_bundle: Path) -> None:
    cubes = bench_frames(tiny_bundle)
    m = read_manifest(tiny_bundle)
    assert len(cubes) == 4 and np.array_equal(cubes[0], golden(tiny_bundle)["frame"][0])
    assert {cube.shape for cube in cubes} == {m.signature.measured.shape[1:]} == {(31, 64, 64)}
    assert {cube.dtype for cube in cubes} == {np.dtype(np.float32)}
    assert len({float(cube.sum()) for cube in cubes}) == 4 and all(np.isfinite(cube).all() for cube in cubes)


def test_wavelengths_that_no_scene_has_do_not_matter(tmp_path: Path) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    reseal(bundle, lambda content: content.update(wavelengths=[100.0, 600.0, 8000.0]))
    assert len(bench_frames(bundle)) == 4


@pytest.mark.parametrize(
    ("flags", "frames"), [(("--seconds", 1e-9), 1), (("--seconds", 1e-9, "--frames", 5), 1), (("--frames", 3), 3)]
)
def test_frames_and_seconds_end_it(capsys: Capsys, tmp_path: Path, flags: tuple[object, ...], frames: int) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    done = invoke(capsys, "bench", bundle, *flags, "--json")
    assert done.code == 0 and done.json["latency_ms"]["frames"] == frames


def test_people_get_tables_of_80_columns(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cool = Reading((1200.0, 2400.0), 400.0, 3000.0, "schedutil", {"cpu": 45.5, "gpu": 44.0}, {"VDD_IN": 4.541})
    gpus = (Gpu("integrated", clock_mhz=612),)
    before = replace(cool, gpus=gpus, power_mode="25W", clocks_locked=False)
    monkeypatch.setattr("runtime.board.read_board", lambda: before)
    spread, hot = Spread(10, 11.5, 12), {"cpu": Spread(60, 70, 71.2), "tj": Spread(50, 51, 52)}
    hotter = {"clock_mhz": Spread(900, 918, 918), "memory_mib": Spread(1400, 1480, 1500)}
    told = Watched(20, Spread(1200, 2400, 2400), hot, {"VDD_IN": spread}, {0: hotter})
    monkeypatch.setattr(BoardWatch, "watched", lambda self: told)
    done = invoke(capsys, "bench", known_bundle(tmp_path / "bundle"), "--frames", 2)
    assert done.code == 0 and done.err == ""
    tables = [line for line in done.out.splitlines() if line[:1] in "┏┃┡│└"]
    assert tables and max(map(len, tables)) <= 80
    for parts in (
        ("p50 ms", "p99 ms", "frames/s"),
        ("metrics ms", "post ms"),
        ("before", "least", "median", "most"),
        ("VDD_IN W", "4.54", "10.00", "11.50", "12.00"),
        ("hottest °C", "46 (cpu)", "60", "70", "71 (cpu)"),
        ("GPU MHz", "612", "900", "918"),
        ("GPU MiB in use", "1400", "1480", "1500"),
        ("power mode", "25W", "-"),
    ):
        assert any(all(part in line for part in parts) for line in tables), parts
    assert "jetson_clocks" in done.out
    assert any("MiB of this process on the host at most" in line for line in done.out.splitlines())


def test_the_board_is_read_while_frames_are_timed(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    clock.parent.mkdir(parents=True)
    clock.write_text("400000\n")
    usual, frames = SessionEngine.infer_impl, iter(range(100))

    def infer_impl(self: SessionEngine, frame: Any, metrics: Any) -> Any:
        # Warm-up and the first frame run slowly; in the third a second passes.
        number = next(frames)
        clock.write_text("800000\n" if number < 3 else "3000000\n")
        if number == 4:
            watch._sample()
        return usual(self, frame, metrics)

    watch = BoardWatch(tmp_path, (), 3600)
    monkeypatch.setattr(bench, "BoardWatch", lambda: watch)
    monkeypatch.setattr(SessionEngine, "infer_impl", infer_impl)
    monkeypatch.setattr(SessionEngine, "close", lambda self: clock.write_text("400000\n"), raising=False)
    done = invoke(capsys, "bench", known_bundle(tmp_path / "bundle"), "--frames", 4, "--warmup", 2, "--json")
    assert done.code == 0, done.err
    during = done.json["board"]["during"]
    assert during["samples"] == 2 and during["cpu_mhz"] == {"least": 3000, "median": 3000, "most": 3000}


@pytest.mark.parametrize(
    ("made", "engine", "told"),
    [("fp16", "onnxruntime", "from an FP16 graph"), ("bf16", "onnxruntime", "fp32"), ("bf16", "openvino", "bf16")],
)
def test_the_precision_is_the_one_that_ran(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, engine: str, told: str
) -> None:
    bundle = known_bundle(tmp_path / "bundle")

    def change(content: dict[str, Any]) -> None:
        content["graphs"][made] = content["graphs"]["fp32"]
        content["precision"]["chosen"] = made

    reseal(bundle, change)
    done = invoke(capsys, "bench", bundle, "--engine", engine, "--frames", 1, "--json")
    if engine == "openvino" and done.code == 3:
        pytest.skip("OpenVINO is not installed, or this CPU has no bfloat16")
    assert done.code == 0, done.err
    assert done.json["precision"] == done.json["engine"]["computes in"] and done.json["precision"].endswith(told)
    assert f"precision  {done.json['precision']}" in done.err


def test_a_board_that_says_nothing_is_said_so(capsys: Capsys, tmp_path: Path) -> None:
    done = invoke(capsys, "bench", known_bundle(tmp_path / "bundle"), "--frames", 1)
    assert "tells nothing of clocks, power or temperature" in done.out


def test_a_folder_of_results(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "out"
    done = invoke(capsys, "bench", bundle, "--frames", 3, "--out", out, "--json")
    told = {key: value for key, value in done.json.items() if key != "warnings"}
    assert json.loads((out / "bench.json").read_text()) == told
    assert (out / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.png"]
    assert_failed(invoke(capsys, "bench", bundle, "--frames", 1, "--out", out), 2, "exists already", "--replace")

    def none(series: object) -> bytes:
        raise MachineError("matplotlib is not installed")

    monkeypatch.setattr("deploy.reporting.plots.latency_plot", none)
    done = invoke(capsys, "bench", bundle, "--frames", 1, "--out", out, "--replace")
    assert done.code == 0 and "no picture is drawn" in done.err
    assert [path.name for path in out.iterdir()] == ["bench.json"]
    # Nothing that it worked with is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out"]


def test_wrong_input(capsys: Capsys, tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    for seconds in ("nan", "inf", "0", "-1"):
        error = assert_json_error(invoke(capsys, "bench", bundle, "--seconds", seconds, "--json"), 2)
        assert error["key"] == "--seconds"
    assert_failed(invoke(capsys, "bench", bundle, "--frames", 0), 2, "--frames")
    assert_failed(invoke(capsys, "bench", bundle, "--engine", "nope"), 2, "unknown engine")
    assert_failed(invoke(capsys, "bench", tmp_path / "none"), 2, "no such bundle")
    assert_failed(invoke(capsys, "bench", bundle, "--out", tmp_path / "a/b"), 2, "no such folder")
    assert_failed(
        invoke(capsys, "bench", tiny_bundle, "--frames", 1, "--checkpoint", "damp-tiny"),
        2,
        "built from another network",
    )


def test_ctrl_c_leaves_nothing_behind(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    calls = iter(range(100))

    def interrupted(self: SessionEngine, frame: Any, metrics: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return frame.copy(), np.eye(*self.signature.ports.outputs["routing"], dtype=np.float32)

    monkeypatch.setattr(SessionEngine, "infer_impl", interrupted)
    capsys.readouterr()
    assert run(["bench", str(bundle), "--frames", "50", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_memory_that_is_not_known_is_null(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.board.forget_peak_memory", lambda: False)
    bundle = known_bundle(tmp_path / "bundle")
    assert invoke(capsys, "bench", bundle, "--frames", 1, "--json").json["peak_memory_mib"] is None
    assert "memory" not in invoke(capsys, "bench", bundle, "--frames", 1).out


def test_the_picture_keeps_the_slowest_frames() -> None:
    latencies = np.full(5001, 2.0)
    latencies[1234] = 99.0
    frames, shown = thinned(latencies)
    assert len(frames) <= 2000 and shown.max() == 99 and frames[shown.argmax()] == 1235
    frames, shown = thinned(latencies[:7])
    assert frames.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert latency_plot({"engine": [0.0], "PyTorch": [0.0]})[:4] == b"\x89PNG"


GROUND = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib", "export", "calibration", "training")


def test_it_flies_without_the_ground(tmp_path: Path) -> None:
    bundle, out = known_bundle(tmp_path / "bundle"), tmp_path / "out"
    code = f"import sys\nfor name in {GROUND}: sys.modules[name] = None\nfrom deploy.cli import run\n"
    code += "sys.exit(run(sys.argv[1:]))"
    for arguments, expected in (
        (("bench", bundle, "--frames", 1, "--out", out), 0),
        (("bench", bundle, "--frames", 1, "--checkpoint", "damp-tiny"), 3),
        (("export-triton", bundle, "--out", tmp_path / "models"), 0),
    ):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in out.iterdir()] == ["bench.json"]
