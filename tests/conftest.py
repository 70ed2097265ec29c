"""What every test finds: the folder of real cubes, a calm PyTorch, and a word on tests left out for want of data."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("DAMP_DATA") or ROOT.parent / "shared" / "data").resolve()
FLIGHT_BUNDLES = Path(given).resolve() if (given := os.environ.get("FLIGHT_BUNDLES")) else None
"""What `python -m tests.flight_bundles` built, where this Python has the flight install alone and cannot build it."""
LEFT_OUT = "set DAMP_DATA to the folder of the real cubes"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real cubes; a test that asks for it is left out where there is none."""
    if not DATA.is_dir():
        pytest.skip(LEFT_OUT)
    return DATA


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """What tests write goes into folders of their own: a file beside the sources would be committed one day."""
    before = {entry.name for entry in ROOT.iterdir()}
    yield
    left = {entry.name for entry in ROOT.iterdir()} - before - {"build", "dist"}
    assert not sorted(name for name in left if not name.startswith(".") and "egg" not in name), (
        "tests wrote files beside the sources"
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.safetensors` with seeded weights: 31 bands of 400 to 700 nm, 8 channels, 4 experts, scale 65535."""
    from tests.flight_bundles import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def graphs_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PyTorch's exporter, which takes most of a small build, writes the same graph only once.

    Processes that test side by side share the graphs. The tests of the exporter itself call it every time.
    """
    import export.metrics_graph
    import export.onnx

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "graphs"
    folder.mkdir(exist_ok=True)
    export_graph, export_metrics = export.onnx.export_graph, export.metrics_graph.export_metrics

    def of_network(net: Any, lines: int, samples: int, experts: str = "dense") -> export.onnx.Graph:
        said = hashlib.sha256(repr((net.architecture.id, net.configuration, lines, samples, experts)).encode())
        for name, values in sorted(net.module.state_dict().items()):
            said.update(name.encode() + values.numpy().tobytes())
        return once(said, lambda: export_graph(net, lines, samples, experts))

    def of_metrics(module: Any, signature: Any) -> export.onnx.Graph:
        return once(hashlib.sha256(repr((module.names, signature)).encode()), lambda: export_metrics(module, signature))

    def once(said: Any, make: Callable[[], export.onnx.Graph]) -> export.onnx.Graph:
        file = folder / f"{said.hexdigest()}.pickle"
        if file.exists():
            found: export.onnx.Graph = pickle.loads(file.read_bytes())
            return found
        graph = make()
        part = file.with_name(f"{os.getpid()}.part")
        part.write_bytes(pickle.dumps(graph))
        part.replace(file)
        return graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.onnx.export_graph", of_network)
        patch.setattr("export.metrics_graph.export_metrics", of_metrics)
        yield


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest) -> Path:
    """A bundle of `tiny_checkpoint` for frames of 64x64 that overlap by 16; a test that writes to it takes a copy."""
    return _tiny_bundle(request, "tiny")


@pytest.fixture(scope="session")
def metrics_bundle(request: pytest.FixtureRequest) -> Path:
    """The same, whose engine computes the metrics of a frame as well."""
    return _tiny_bundle(request, "measuring", metrics="graph")


def _tiny_bundle(request: pytest.FixtureRequest, name: str, **asked: Any) -> Path:
    if FLIGHT_BUNDLES is not None:
        return FLIGHT_BUNDLES / name
    from tests.flight_bundles import build_tiny

    request.getfixturevalue("graphs_once")
    checkpoint: Path = request.getfixturevalue("tiny_checkpoint")
    return build_tiny(checkpoint, checkpoint.with_name(name), **asked)


def pytest_configure() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored; programs under test must not inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests marked `data` where there are no real cubes."""
    if DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT))


def pytest_collection_finish() -> None:
    """One thread: sums in one order, and networks this small lose more to waiting threads than they gain.

    Tests that need PyTorch have imported it by now.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


GROUND = tuple(str(ROOT / folder) for folder in ("calibration", "export", "tests", "training"))
NEEDED = "not of the flight install: "


def _needed(error: BaseException | None) -> str | None:
    """What of the ground a test asked for where there is the flight install alone; None where it failed otherwise.

    What flies may not ask for it, and fails.
    """
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    if FLIGHT_BUNDLES is None or error is None or error.name is None:
        return None
    ours = [str(frame.path) for frame in pytest.ExceptionInfo.from_exception(error).traceback]
    last = next((path for path in reversed(ours) if path.startswith(f"{ROOT}{os.sep}")), "")
    return error.name.partition(".")[0] if last.startswith(GROUND) else None


def _leave_out(report: pytest.CollectReport | pytest.TestReport, call: pytest.CallInfo[Any]) -> None:
    needed = _needed(call.excinfo.value) if call.excinfo is not None else None
    if needed is not None:
        report.outcome = "skipped"
        report.longrepr = (report.nodeid, 0, f"Skipped: {NEEDED}{needed}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that imports what is of the ground is left out where that is not there."""
    report = yield
    _leave_out(report, report.call)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """So is a test that does so while it runs."""
    report = yield
    _leave_out(report, call)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line on the tests that were left out, for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    asked = [report for report in skipped if NEEDED in report.longreprtext]
    if asked:
        names = Counter(report.longreprtext.rpartition(NEEDED)[2].strip("'\")") for report in asked)
        modules = sum(isinstance(report, pytest.CollectReport) for report in asked)
        told = ", ".join(f"{name} ({count})" for name, count in sorted(names.items()))
        terminalreporter.write_line(f"{modules} modules and {len(asked) - modules} tests left out: need {told}")
    count = sum("DAMP_DATA" in report.longreprtext for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} data tests left out: set DAMP_DATA")
