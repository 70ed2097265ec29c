"""What every test finds: the folder of real cubes, a calm PyTorch, and a word on tests left out for want of data."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("DAMP_DATA") or ROOT.parent / "shared" / "data").resolve()
LEFT_OUT = "set DAMP_DATA to the folder of the real cubes"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real cubes; a test that asks for it is left out where there is none."""
    if not DATA.is_dir():
        pytest.skip(LEFT_OUT)
    return DATA


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.safetensors` with seeded weights: 31 bands of 400 to 700 nm, 8 channels, 4 experts, scale 65535."""
    import torch

    from export.networks import network_of, save_checkpoint
    from export.networks.damp import Damp, DampConfig

    config = DampConfig(
        dim=8,
        heads=(2, 2, 2, 2),
        encoder_blocks=(1, 0, 0, 1),
        decoder_blocks=(1, 1, 0),
        refinement_blocks=0,
        expansion=1,
        embedding=16,
        gate="concat",
        metric_set="paper6",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Damp(config).eval()
        torch.nn.init.normal_(net.output.weight, 0, 0.02)
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    made = network_of(net)
    return save_checkpoint(made, path, scale=65535, wavelengths=tuple(range(400, 701, 10)), about="seeded weights")


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
def tiny_bundle(tiny_checkpoint: Path, graphs_once: None) -> Path:
    """A bundle of `tiny_checkpoint` for frames of 64x64 that overlap by 16; a test that writes to it takes a copy."""
    return _tiny_bundle(tiny_checkpoint, "bundle")


@pytest.fixture(scope="session")
def metrics_bundle(tiny_checkpoint: Path, graphs_once: None) -> Path:
    """The same, whose engine computes the metrics of a frame as well."""
    return _tiny_bundle(tiny_checkpoint, "measuring", metrics="graph")


def _tiny_bundle(checkpoint: Path, name: str, **asked: Any) -> Path:
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    flags = {"model.checkpoint": str(checkpoint), "input.frame": "64x64", "input.overlap": 16}
    out = checkpoint.with_name(name)
    build(with_overrides(Config(), flags), out, **asked)
    return out


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line on the tests that were left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("DAMP_DATA" in report.longreprtext for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} data tests left out: set DAMP_DATA")
