"""What `deploy run` takes of memory for a cube that is read whole: `python -m benchmarks.memory`.

Every row restores a cube of about 300 MB as float32 in a process of its own, by a graph of 31 bands x 256x256 that
takes no time, and reads the most memory that the process ever had (VmHWM). What the same command takes for a cube of
one frame, which is Python, libraries and the engine, is told beside it and taken off. Bar: at most 5 times the cube as
float32. Exit code 1 when it is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table

from runtime.bundle_files import array_bytes, write_bundle
from runtime.engines import open_engine
from runtime.files.rows import Rows, write_rows
from runtime.manifest import Manifest
from runtime.metrics import prompt_metrics
from runtime.signature import Plane, Prompt, Signature

from .timing import show

BAR = 5.0
SIDE, BANDS = 256, 31
LARGE, SMALL = (1536, 1600), (SIDE, SIDE)
CHILD = """
import sys
from deploy.cli import run
code = run(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1], code)
"""


@dataclass(frozen=True)
class Case:
    """A cube, and how it is restored.

    Attributes:
        name: for people.
        dtype, order: of the file, the slowest axis first.
        suffix: of the file; `out` of what is written.
        bands: of the cube.
        fields: of its ENVI header.
        words: more of the command line.
        marks: a tenth of the pixels is missing, and a band holds one value.
        network: `cube` with metrics, in groups where there are more bands; `rgb` for three bands.
    """

    name: str
    dtype: str
    order: tuple[str, str, str] = ("lines", "samples", "bands")
    suffix: str = ".npy"
    out: str = ".npy"
    bands: int = BANDS
    fields: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    marks: bool = False
    network: str = "cube"


BIL, BIP, BSQ = ("lines", "bands", "samples"), ("lines", "samples", "bands"), ("bands", "lines", "samples")
SCALED = {"reflectance scale factor": "10000"}
FIRST = ("--layout", "bands,lines,samples")
CASES = (
    Case("ENVI, uint16, bil", "<u2", BIL, ".bil", ".bil", fields=SCALED),
    Case("ENVI, uint16, bip", "<u2", BIP, ".bip", ".bip", fields=SCALED),
    Case("ENVI, uint16, bsq", "<u2", BSQ, ".bsq", ".bsq", fields=SCALED),
    Case("ENVI, int16, bil, big-endian", ">i2", BIL, ".bil", ".bil", fields=SCALED),
    Case("ENVI, float32, bsq, big-endian", ">f4", BSQ, ".bsq", ".bsq"),
    Case("ENVI, uint8, bip", "u1", BIP, ".bip", ".bip", fields={"reflectance scale factor": "255"}),
    Case("ENVI, float64, bil", "<f8", BIL, ".bil", ".bil"),
    Case("ENVI, uint16, bil, missing pixels, bad bands", "<u2", BIL, ".bil", ".bil", marks=True,
         fields={**SCALED, "data ignore value": "65535"}),
    Case("ENVI, uint16, bil, in the unit range", "<u2", BIL, ".bil", ".bil", fields=SCALED,
         words=("--output-type", "float32", "--clip")),
    Case("ENVI, float32, bil, missing pixels (NaN)", "<f4", BIL, ".bil", ".bil", marks=True,
         fields={"data ignore value": "nan"}),
    Case(".npy, float32", "<f4"),
    Case(".npy, float32, bands first", "<f4", BSQ, words=FIRST),
    Case(".npy, float32, big-endian", ">f4"),
    Case(".npy, float64", "<f8"),
    Case(".npy, uint16, 93 bands in groups", "<u2", bands=93, words=("--scale", "10000")),
    Case(".npy, float32, 93 bands in groups", "<f4", bands=93),
    Case(".npz, uint16", "<u2", suffix=".npz", words=("--scale", "10000")),
    Case(".mat, float32", "<f4", suffix=".mat", words=("--layout", "lines,samples,bands")),
    Case(".npy, uint8, three bands", "u1", bands=3, words=("--scale", "255"), network="rgb"),
    Case(".npy, float32, three bands", "<f4", bands=3, network="rgb"),
    Case(".npy, float64, three bands", "<f8", bands=3, network="rgb"),
)  # fmt: skip


def bundle_of(folder: Path, network: str) -> Path:
    """A bundle that gives back nearly what it takes, in no time."""
    bands = 3 if network == "rgb" else BANDS
    plane = (bands, SIDE, SIDE, network) if network == "rgb" else (bands, SIDE, SIDE)
    prompts = () if network == "rgb" else (Prompt("metrics", (1, 6), "metrics", "paper6"),)
    signature = Signature(Plane("frame", *plane), Plane("restored", *plane), prompts, ())
    ports = signature.ports
    told = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        for shapes in (ports.inputs, ports.outputs)
    ]
    nodes = [helper.make_node("Mul", ["frame", "gain"], ["scaled"])]
    held = [numpy_helper.from_array(np.float32(0.97), "gain")]
    if prompts:
        # Every input is used: what the network is told moves what it gives a little.
        held.append(numpy_helper.from_array(np.float32(1e-9), "little"))
        nodes += [
            helper.make_node("ReduceMean", ["metrics"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "little"], ["moved"]),
            helper.make_node("Add", ["scaled", "moved"], ["restored"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["scaled"], ["restored"]))
    graph = helper.make_graph(nodes, "nearly the same", *told, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made)
    data = made.SerializeToString()
    frame = np.random.default_rng(0).random((1, bands, SIDE, SIDE), np.float32)
    given = {"frame": frame} | {prompt.name: prompt_metrics(frame[0], "paper6")[None] for prompt in prompts}
    with open_engine("onnxruntime", data, signature) as engine:
        arrays = {**given, **engine.infer(given)}
    manifest = Manifest.model_validate(
        {
            "schema_version": Manifest.version,
            "created": "2026-01-01T00:00:00+00:00",
            "tools": {"damp-deploy": "0"},
            "network": {"architecture": "known", "configuration": {}, "parameters": 1, "checkpoint": "known",
                        "checkpoint_sha256": "0" * 64},
            "signature": signature,
            "wavelengths": None,
            "overlap": 32,
            "scale": None,
            "scale_from": None,
            "target": {"name": "cpu", "engine": "onnxruntime", "threads": 1},
            "precision": {"chosen": "fp32", "why": "asked for"},
            "graphs": {"fp32": "graphs/fp32.onnx"},
            "golden": {"arrays": {name: f"golden/{name}.npy" for name in arrays}, "tolerance": 1e-4},
            "evidence": {"export": {"difference": 1e-7}},
            "files": {},
        }
    )  # fmt: skip
    golden = {f"golden/{name}.npy": array_bytes(array) for name, array in arrays.items()}
    write_bundle(folder, {"graphs/fp32.onnx": data, **golden}, manifest)
    return folder


def numbers_of(case: Case, band: int, size: tuple[int, int]) -> NDArray[Any]:
    """One band: a slope and noise."""
    dtype = np.dtype(case.dtype)
    rng = np.random.default_rng(band)
    values = rng.random(size, np.float32) * 0.3 + 0.2 + np.linspace(0, 0.3, size[1], dtype=np.float32)
    scale = {1: 255, 2: 10000}.get(dtype.itemsize, 1)
    if case.marks and band == 3:
        values[...] = 0.5
    numbers = (values * scale).astype(dtype)
    if case.marks:
        numbers[: size[0] // 10] = np.nan if dtype.kind == "f" else 65535
    return numbers


def write_case(case: Case, folder: Path, size: tuple[int, int]) -> Path:
    """The file of a cube, and its header."""
    path = folder / f"cube{case.suffix}"
    shape, dtype = (case.bands, *size), np.dtype(case.dtype)
    rows = Rows(shape, case.order, dtype)
    cube = np.empty(shape, dtype)
    for band in range(case.bands):
        cube[band] = numbers_of(case, band, size)
    if case.suffix == ".mat":
        from scipy.io import savemat

        savemat(path, {"cube": cube.transpose(1, 2, 0)})
        return path
    with path.open("wb") as file:
        if case.suffix in (".npy", ".npz"):
            head = io.BytesIO()
            told = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": rows.lengths}
            np.lib.format.write_array_header_1_0(head, told)
            file.write(head.getvalue())
            rows = Rows(shape, case.order, dtype, len(head.getvalue()))
            file.flush()
        write_rows(file, rows, 0, cube)
    if case.suffix == ".npz":
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            archive.write(path, "cube.npy")
        path.with_suffix(".zip").replace(path)
    if case.suffix not in (".npy", ".npz"):
        interleave = {BIL: "bil", BIP: "bip", BSQ: "bsq"}[case.order]
        code = {"u1": 1, "i2": 2, "f4": 4, "f8": 5, "u2": 12}[dtype.str[1:]]
        lines = {"samples": size[1], "lines": size[0], "bands": case.bands, "header offset": 0, "data type": code,
                 "interleave": interleave, "byte order": int(dtype.str[0] == ">"), **case.fields}  # fmt: skip
        path.with_suffix(".hdr").write_text("ENVI\n" + "".join(f"{key} = {text}\n" for key, text in lines.items()))
    return path


def peak_of(case: Case, bundle: Path, size: tuple[int, int]) -> float:
    """MiB that restoring a cube of that size takes at most."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cube = write_case(case, folder, size)
        out = folder / "out" / f"restored{case.out}"
        out.parent.mkdir()
        words = ["run", str(bundle), str(cube), "--out", str(out), "--metrics", "scene", "--threads", "1", *case.words]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False, env=os.environ
        )
        told = done.stdout.split()
        if done.returncode or told[-1] != "0":
            raise SystemExit(f"{case.name}: {done.stderr[-2000:]}")
    return int(told[-2]) / 1024


def main() -> int:
    """Measure and print; 0 if the bar is reached everywhere."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose names hold this")
    only = parser.parse_args().only
    table = Table(title="most memory of `deploy run`; times the cube as float32 without what one frame takes")
    for heading in ("cube", "float32, MiB", "one frame, MiB", "peak, MiB", "times", "bar", ""):
        table.add_column(heading, justify="left" if heading == "cube" else "right")
    missed = False
    with tempfile.TemporaryDirectory() as name:
        bundles = {kind: bundle_of(Path(name) / kind, kind) for kind in ("cube", "rgb")}
        for case in (case for case in CASES if only in case.name):
            # As many numbers whatever the bands, and no more lines than a file of few bands can have.
            size = LARGE[0] * BANDS // case.bands, LARGE[1]
            whole = case.bands * size[0] * size[1] * 4 / 2**20
            base = peak_of(case, bundles[case.network], SMALL)
            peak = peak_of(case, bundles[case.network], size)
            times = (peak - base) / whole
            missed |= times > BAR
            verdict = "reached" if times <= BAR else "missed"
            table.add_row(case.name, f"{whole:.0f}", f"{base:.0f}", f"{peak:.0f}", f"{times:.2f}", f"{BAR:g}", verdict)
            print(f"{case.name}: {times:.2f}", file=sys.stderr, flush=True)
    show(table)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
