"""The process that builds engines: what its builder prints, finds in its folder or cannot keep costs no engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from export.tensorrt import build, child
from export.tensorrt.build import Request, build_engine, builder_version, forget_engine, timing_cache
from runtime.engines.tensorrt_libraries import load_tensorrt, tensorrt_version
from runtime.errors import BundleError, MachineError

RTX = Request("tensorrt-rtx", "8.9", 64)
needs_rtx = pytest.mark.skipif(tensorrt_version("tensorrt-rtx") is None, reason="the extra `rtx` is not installed")
# RTX has timing caches as TensorRT has them, but for what they hold.
timings = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DONE = {"version": "1", "seconds": 1.0, "layers": 1, "peak_mib": 1, "bytes": 1}
DRIVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import export.tensorrt.child as child
loaded = child.load_tensorrt
def load(kind):
    os.write(1, b"[11/21/2026-17:18:29] [TRT] [E] native noise\\n")
    return loaded(kind)
child.load_tensorrt = load
child.main()
"""


def graph(*operators: str, constant: TensorProto | None = None, kind: int = TensorProto.FLOAT) -> bytes:
    """A chain of operators with one input each, the first of `kind`; a constant is added at its end."""
    names = ["frame", *(f"t{place}" for place in range(len(operators)))]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(operators)]
    if constant is not None:
        nodes.append(helper.make_node("Add", [names[-1], constant.name], ["sum"]))
    nodes[-1].output[0] = "restored"
    ends = [helper.make_tensor_value_info(name, kind, [4]) for name in ("frame", "restored")]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [] if constant is None else [constant])
    data: bytes = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return data


RELU = graph("Relu")


def served(folder: Path, **others: Any) -> tuple[list[dict[str, Any]], str]:
    """(events, standard error) of a real child whose native libraries write to file descriptor 1."""
    (folder / "graph.onnx").write_bytes(RELU)
    files = {"graph": "graph.onnx", "engine": "engine.plan", "layers": "layers.json"}
    request = {
        **{key: str(folder / name) for key, name in files.items()},
        "kind": RTX.kind, "sm": RTX.sm, "workspace_mib": 64, "timing_cache": None, "use_timings": True, **others,
    }  # fmt: skip
    command = [sys.executable, "-c", DRIVER, str(build.ROOT)]
    ran = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()], ran.stderr


@needs_rtx
def test_what_native_loggers_print_is_no_event(tmp_path: Path) -> None:
    events, said = served(tmp_path)
    assert "native noise" in said and set(events[-1]) == {"done"}
    assert len((tmp_path / "engine.plan").read_bytes()) == events[-1]["done"]["bytes"]
    assert "network" in json.loads((tmp_path / "layers.json").read_bytes())["source"]


@needs_rtx
@pytest.mark.parametrize("used", [True, False])
def test_a_damaged_timing_cache_is_set_aside_and_written_anew(tmp_path: Path, used: bool) -> None:
    cache = tmp_path / "t.cache"
    cache.write_bytes(b"damaged" * 9)
    events, said = served(tmp_path, timing_cache=str(cache), use_timings=used)
    assert "done" in events[-1] and b"damaged" not in cache.read_bytes() and cache.stat().st_size > 0
    assert ("Failed to deserialize timing cache" in said) == used
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.plan", "graph.onnx", "layers.json", "t.cache"]


@needs_rtx
def test_timings_that_cannot_be_kept_are_only_told(tmp_path: Path) -> None:
    events, said = served(tmp_path, timing_cache=str(tmp_path / "gone" / "t.cache"))
    assert "done" in events[-1] and "t.cache is not kept" in said


@needs_rtx
@timings
def test_timings_of_a_builder_are_kept_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trt = load_tensorrt("tensorrt-rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    child.load_timings(config, tmp_path / "none")
    child.save_timings(config, tmp_path / "t")
    assert not list(tmp_path.iterdir())
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    child.save_timings(config, tmp_path / "t")
    child.load_timings(config, tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["t"] and capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", [RuntimeError("no GPU memory"), None])
def test_an_engine_that_cannot_be_inspected_keeps_the_layers_of_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Exception | None
) -> None:
    def layers(trt: object, data: bytes) -> list[Any] | None:
        if fault is not None:
            raise fault
        return None

    monkeypatch.setattr(child, "load_tensorrt", lambda kind: None)
    monkeypatch.setattr(child, "_engine_layers", layers)
    for name in ("engine", "layers"):
        (tmp_path / name).write_bytes(b"{}")
    child.inspect({"kind": "tensorrt", "engine": str(tmp_path / "engine"), "layers": str(tmp_path / "layers")})
    assert (tmp_path / "layers").read_bytes() == b"{}"
    assert ("cannot be inspected: no GPU memory" in capsys.readouterr().err) == (fault is not None)
    monkeypatch.setattr(child, "_engine_layers", lambda trt, data: [{"Name": "fused"}])
    child.inspect({"kind": "tensorrt", "engine": str(tmp_path / "engine"), "layers": str(tmp_path / "layers")})
    assert json.loads((tmp_path / "layers").read_bytes()) == {"source": "engine", "layers": [{"Name": "fused"}]}


@pytest.mark.parametrize("end", ["", "os.abort()", "sys.exit(3)"])
def test_an_engine_that_is_done_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    lines = [
        "[TRT] [E] noise",
        "[1]",
        '{"phase": "p", "step": 1, "steps": 2}',
        json.dumps({"done": DONE}),
        "7",
        "\\xff",
    ]
    script = f"import os, sys; sys.stdin.read(); print(*{lines!r}, sep=chr(10), flush=True); {end}"
    monkeypatch.setattr(build, "START", script)
    told: list[tuple[str, int, int]] = []
    assert build._run({}, tmp_path / "log", lambda *step: told.append(step)) == DONE
    assert told == [("p", 1, 2)]


def test_a_child_that_cannot_start_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "START", "import os; os.close(0); raise SystemExit('[E] no such module')")
    with pytest.raises(MachineError, match=r"log.*no such module"):
        build._run({"much": "x" * (1 << 20)}, tmp_path / "log", None)


@needs_rtx
def test_modules_in_the_users_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, work = tmp_path / "here", Path("w")
    here.mkdir()
    for name in ("resource", "json", "polygraphy", "runtime", "export"):
        (here / f"{name}.py").write_text("raise SystemExit('[E] foreign')")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", os.environ.get("PYTHONPATH", "")]))
    made = build_engine(RELU, RTX, work)
    assert not made.again and build_engine(RELU, RTX, work).data == made.data
    forget_engine(work)
    assert sorted(p.name for p in work.iterdir()) == ["builder.log", "layers.json"]
    assert not build_engine(RELU, RTX, work, use_timings=False).again
    forget_engine(work)
    forget_engine(work)


def test_our_packages_are_found_wherever_they_are_installed(tmp_path: Path) -> None:
    """In a folder that Python knows (a wheel) they keep its place, which is after Python's own modules."""
    start = build.START.partition("from export")[0] + "import json; print(json.dumps(sys.path))"

    def places(root: Path) -> list[str]:
        ran = subprocess.run([sys.executable, "-c", start, str(root)], cwd=tmp_path, capture_output=True, check=True)
        found: list[str] = json.loads(ran.stdout)
        return found

    usual = places(tmp_path / "tree")
    assert usual[0] == str(tmp_path / "tree") and "" not in usual and str(tmp_path) not in usual
    assert places(Path(usual[-1])) == usual[1:]


@needs_rtx
def test_a_graph_that_the_builder_refuses_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"builder\.log") as caught:
        build_engine(graph("Relu", kind=TensorProto.INT32), RTX, tmp_path / "w")
    assert caught.value.file and Path(caught.value.file).is_file()


@needs_rtx
@pytest.mark.parametrize("sm", ["9.0", "8.7", "11.0", "89"])
def test_a_gpu_that_rtx_does_not_know_reaches_no_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sm: str
) -> None:
    monkeypatch.setattr(build, "_run", lambda *request: pytest.fail("a builder was started"))
    with pytest.raises(MachineError, match=rf"sm: .*'{sm}'.*it knows .*8\.9, 12\.0.*`--target cuda`") as caught:
        build_engine(RELU, Request("tensorrt-rtx", sm, 64), tmp_path / "w")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@needs_rtx
@pytest.mark.parametrize("sm", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_every_gpu_that_rtx_knows_has_its_builder(sm: str) -> None:
    assert builder_version(Request("tensorrt-rtx", sm, 64)) == tensorrt_version("tensorrt-rtx")


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "absolute"])
def test_graphs_that_refer_to_other_files_reach_no_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(16))
    elsewhere = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    elsewhere.external_data.add(key="location", value=str(secret) if location == "absolute" else location)
    monkeypatch.setattr(build, "_run", lambda *request: pytest.fail("a builder was started"))
    with pytest.raises(BundleError, match="outside itself"):
        build_engine(graph("Relu", constant=elsewhere), RTX, tmp_path / "w")
    with pytest.raises(BundleError, match="operator"):
        build_engine(graph("NonZero"), RTX, tmp_path / "w")


class StartError(Exception):
    """A builder would run now."""


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("kind", ["tensorrt", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_what_the_child_is_told_of_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, used: bool
) -> None:
    def run(request: dict[str, Any], *others: object) -> None:
        assert request["use_timings"] is used and bool(request["timing_cache"]) == (kind == "tensorrt")
        raise StartError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "tensorrt_version", lambda kind: "10.3.0")
    monkeypatch.setattr(build, "_run", run)
    with pytest.raises(StartError):
        build_engine(RELU, Request(kind, RTX.sm, 0), tmp_path / "w", use_timings=used)
    assert (tmp_path / "cache").exists() == (kind == "tensorrt")


def test_timings_are_kept_where_they_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> Path:
        return timing_cache("10.3.0", "8.7", "k", tmp_path / "work").parent

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert chosen() == tmp_path / "cache" / "damp-deploy" / "timing"
    with monkeypatch.context() as patch:
        # Root may write everywhere: the answer of a folder that is another user's.
        patch.setattr(os, "access", lambda path, mode: False)
        assert chosen() == tmp_path / "work"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert chosen() == tmp_path / "work"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert chosen() == tmp_path / "work"
