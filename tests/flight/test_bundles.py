"""Every bundle opens, gives its golden frames, and restores alike in every engine that is installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.bundle import Bundle, load_bundle
from runtime.bundle_files import verified_bundle
from runtime.engines import CPU_ENGINES, available_engines
from runtime.errors import BundleError, MachineError
from runtime.parity import apart
from runtime.signature import Signature
from tests.contracts.command import PATIENCE, ROOT, assert_failed, invoke
from tests.flight.cubes import noise, scene, unit

AGREE = 1e-3
"""Of the range: engines of float32 add up in other orders."""


def needs(engine: str) -> None:
    """Leave a test out where an engine is not installed."""
    if not available_engines()[engine]:
        pytest.skip(f"{engine} is not installed")


def opened(bundle: Path, engine: str | None = None) -> Bundle:
    """A bundle in its own engine or in another; a test is left out where that is not there, or cannot run."""
    manifest = verified_bundle(bundle).manifest
    needs(engine or manifest.target.engine)
    try:
        return load_bundle(bundle, threads=1, prompt=next(iter(manifest.prompts), None), engine=engine)
    except MachineError as error:
        # OpenVINO 2026.4 on aarch64 seems to read the axis of a sum past its end, and refuses an int8 graph by chance.
        if engine == "onnxruntime" or platform.machine() == "x86_64" or error.key != "precision":
            raise
        pytest.skip(str(error))


def cube_for(signature: Signature) -> NDArray[np.float32]:
    """Larger than a frame where a frame may lie anywhere."""
    bands, lines, samples = signature.measured.shape[1:]
    clean = scene(bands, lines, samples + 23) if signature.tiling == "free" else scene(bands, lines, samples)
    return unit(clean * 3 // 4 + noise(clean.shape) // 8)


def test_the_golden_frames_come_out_as_they_were_recorded(
    bundle: Path, record_property: Callable[[str, object], None]
) -> None:
    with opened(bundle) as flown:
        proofs, tolerance = len(flown.manifest.proofs), flown.choice.tolerance
        difference = flown.self_test()
        assert difference <= tolerance
        assert len(flown.answers) == proofs
        told = f"{difference:.1e} of {tolerance:.1e} allowed, {proofs} frames"
        record_property(f"{flown.manifest.target.engine}, golden", told)


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_cube_is_restored_in_every_engine(bundle: Path, engine: str) -> None:
    with opened(bundle, engine) as flown:
        signature, precision = flown.manifest.signature, flown.choice.precision
        cube = cube_for(signature)
        restored: NDArray[Any] = flown.restore(cube, unit=True).cube
    assert np.isfinite(restored).all()
    size = cube.shape[1:] if signature.tiling == "free" else signature.restored.size
    assert restored.shape == (signature.restored.bands, *size)
    assert not np.array_equal(restored, cube)
    if engine != verified_bundle(bundle).manifest.target.engine and precision == "fp32":
        with opened(bundle) as own:
            assert apart(restored, own.restore(cube, unit=True).cube) <= AGREE


SPYING = """
import sys

def seen(event, arguments):
    if event in ("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.getaddrinfo", "socket.connect"):
        print(event)

sys.addaudithook(seen)
from runtime.engines.openvino_cpu import available
print(available())
"""


def test_openvino_tells_nobody_that_it_was_opened(tmp_path: Path) -> None:
    needs("openvino")
    alone = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", SPYING], env={**alone, "HOME": str(tmp_path), "PYTHONPATH": ROOT}, check=True, text=True,
        stdout=subprocess.PIPE, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == f"{available_engines()['openvino']}\n"
    assert not list(tmp_path.iterdir()), "nothing is written into a home"


def test_a_bundle_with_one_wrong_byte_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    graph = next(copy.glob("graphs/*.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.chmod(0o644)
    graph.write_bytes(data)
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_inspect_tells_what_a_bundle_is(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, "inspect", bundle, "--json")
    assert done.code == 0, done.err
    checkpoint = done.json["manifest"]["network"]["checkpoint"]
    assert name.startswith(Path(checkpoint).stem) or checkpoint == "tiny.safetensors"


def test_what_is_no_bundle_is_the_users_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_failed(invoke(capsys, "inspect", tmp_path), 2, str(tmp_path))
