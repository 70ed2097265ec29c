"""The rules of the house: imports go one way, the flight install is enough to fly, nothing names one machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deploy
from deploy.cli import COMMANDS
from runtime.versions import PROGRAM

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "damp-deploy"
PACKAGES = ("calibration", "deploy", "export", "runtime", "training")
FLYING = ("deploy", "runtime")
REGISTRIES = {
    "deploy/__init__.py", "deploy/cli.py", "runtime/engines/__init__.py", "runtime/engines/onnxruntime_gpu.py",
    "runtime/engines/tensorrt_libraries.py", "runtime/sources/__init__.py", "runtime/sinks/__init__.py",
    "runtime/products/__init__.py", "calibration/severity.py",
}  # fmt: skip
"""Files that load by name: tables of engines, sources, sinks and commands, and libraries that may not be there."""
GROUND = ("torch", "onnx", "onnxscript", "safetensors", "export", "calibration", "training")


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is text."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def tracked() -> list[Path]:
    """Every file of the project that git knows, or is about to know."""
    done = run("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    assert done.returncode == 0, done.stderr
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_imports_go_one_way() -> None:
    done = run(sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_imports_go_in_a_circle() -> None:
    """Those within functions count, those for types alone do not."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


def test_no_module_is_imported_by_a_string_outside_the_registries() -> None:
    loads = {
        str(path.relative_to(ROOT))
        for top in PACKAGES
        for path in (ROOT / top).rglob("*.py")
        if re.search(r"\bimport_module\(|\b__import__\(", path.read_text())
    }
    assert loads <= REGISTRIES


@pytest.mark.parametrize("top", [*PACKAGES, "tests"])
def test_every_folder_of_modules_is_a_package(top: str) -> None:
    folders = {path.parent for path in (ROOT / top).rglob("*.py")}
    assert folders
    assert not sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file())


def test_no_file_names_a_machine() -> None:
    paths = ["work", "root", "home/[a-z]+", "Users/[A-Za-z]+", "opt/(?:wheels|pypi)", "mnt/[a-z]+"]
    hosts = ["pypi" + r"\.org", "python" + r"hosted\.org", "deb" + r"ian\.org"]
    pattern = re.compile(rf"(?<![\w./~>}}])/(?:{'|'.join(paths)})/|{'|'.join(hosts)}".encode())
    named = {}
    for path in tracked():
        if path.suffix != ".safetensors" and (found := pattern.search(path.read_bytes())):
            named[str(path.relative_to(ROOT))] = found.group()
    assert not named


def test_packages_come_from_this_tree(tmp_path: Path) -> None:
    for name in FLYING:
        code = f"from importlib.util import find_spec as f; print(*f({name!r}).submodule_search_locations)"
        done = run(sys.executable, "-c", code, cwd=tmp_path)
        assert Path(done.stdout.strip()) == ROOT / name, done.stderr or "run `make install`"


def test_the_version_is_the_same_wherever_it_is_told() -> None:
    told = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert told and told[1] == deploy.__version__ == PROGRAM


def declared(extra: str = "") -> dict[str, Requirement]:
    """Requirements of the project itself: those of the base, or those that an extra adds."""
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, requires(DISTRIBUTION) or []):
        marker = str(requirement.marker or "")
        if re.findall(r'extra == "([^"]+)"', marker) == ([extra] if extra else []):
            found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("cpu", {"onnxruntime"}),
        ("gpu", {"onnxruntime-gpu"}),
        ("tensorrt", {"onnx", "polygraphy", "tensorrt"}),
        ("rtx", {"onnx", "onnxruntime-ep-nv-tensorrt-rtx-cu13", "polygraphy", "tensorrt-rtx-cu13-bindings"}),
        ("openvino", {"openvino"}),
        ("export", {"jinja2", "onnx", "onnxscript", "safetensors", "torch"}),
        ("report", {"matplotlib", "pywavelets", "scikit-image", "scikit-learn"}),
        ("stream", {"prometheus-client", "pyzmq", "spacepackets"}),
        ("photographs", {"pyvips", "pyvips-binary"}),
        ("video", {"av"}),
        ("signing", {"cryptography"}),
        ("products", {"rasterio"}),
        ("zarr", {"zarr"}),
        ("archive", {"dask", "distributed", "rasterio"}),
        ("genicam", set()),
    ],
)
def test_extras_bring_what_they_say(extra: str, packages: set[str]) -> None:
    assert set(declared(extra)) == packages


def test_base_is_small() -> None:
    assert set(declared()) == {"click", "h5py", "numpy", "pillow", "pydantic", "pyyaml", "rich", "scipy"}


def test_everything_that_make_installs_is_pinned() -> None:
    makefile = (ROOT / "Makefile").read_text()
    extras = re.search(r"^EXTRAS := (\S+)$", makefile, re.MULTILINE)
    assert extras
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    here: dict[str, Requirement] = {
        canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()
    }
    wanted = closure(DISTRIBUTION, frozenset(extras[1].split(",")), unfollowed=frozenset({"torch"}))
    wanted.pop(DISTRIBUTION)
    unpinned = {
        f"{name}=={dist.version}"
        for name, dist in wanted.items()
        if name not in here or not here[name].specifier.contains(dist.version, prereleases=True)
    }
    assert not unpinned


def closure(name: str, extras: frozenset[str], unfollowed: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """A distribution with these extras and everything that they need here, by name, as installed.

    What the `unfollowed` need in turn stays out.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while waiting:
        key = waiting.pop()
        if key in seen:
            continue
        seen.add(key)
        dist = found[key[0]] = distribution(key[0])
        for need in map(Requirement, [] if key[0] in unfollowed else dist.requires or []):
            if need.marker is None or need.marker.evaluate({"extra": key[1]}):
                waiting += [(canonicalize_name(need.name), extra) for extra in ("", *need.extras)]
    return found


def tops(dist: Distribution) -> Iterator[Path]:
    """The shortest paths that hold files of this distribution alone: packages, modules, files of namespaces."""
    files = [file for file in dist.files or [] if file.parts[0] != ".." and file.suffix not in {".pth", ".pyc"}]
    packages = {file.parent for file in files if file.name == "__init__.py"}
    for file in files:
        whole = [parent for parent in file.parents if parent in packages]
        yield Path(whole[-1] if whole else file)


@pytest.fixture(scope="module")
def flight_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the base and `cpu` install, runtime/ and deploy/, and nothing else."""
    site = tmp_path_factory.mktemp("flight")
    for name, dist in closure(DISTRIBUTION, frozenset({"cpu"})).items():
        if name != DISTRIBUTION:
            for top in set(tops(dist)):
                (site / top).parent.mkdir(parents=True, exist_ok=True)
                (site / top).symlink_to(Path(str(dist.locate_file(top))))
    for package in FLYING:
        (site / package).symlink_to(ROOT / package)
    return site


def fly(site: Path, code: str, *arguments: str) -> str:
    """Standard output of a program that a bare Python runs with nothing but the flight site."""
    program = f"import sys\nsys.path.append({str(site)!r})\n{code}"
    done = run(sys.executable, "-I", "-S", "-c", program, *arguments, cwd=site)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_flight_site_holds_nothing_of_the_ground(flight_site: Path) -> None:
    code = "from importlib.util import find_spec\nprint(*filter(find_spec, sys.argv[1:]))"
    assert fly(flight_site, code, *GROUND).split() == []
    assert fly(flight_site, code, *FLYING, "numpy", "onnxruntime").split() == [*FLYING, "numpy", "onnxruntime"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_helps_on_the_flight_install(flight_site: Path, command: str) -> None:
    code = "from deploy.__main__ import main\nmain()"
    words = [command] if command else []
    assert " ".join(["Usage: deploy", *words, "[OPTIONS]"]) in fly(flight_site, code, *words, "--help")


def test_bundle_flies(flight_site: Path, request: pytest.FixtureRequest) -> None:
    code = """
import json, pathlib, numpy, onnxruntime, runtime
bundle = pathlib.Path(sys.argv[1])
session = onnxruntime.InferenceSession(next(bundle.rglob("*.onnx")), providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape[1:]
cube = numpy.random.default_rng(0).random(shape, numpy.float32)
restored = runtime.load_bundle(bundle).restore(cube).cube
print(json.dumps([shape, restored.shape, bool(numpy.isfinite(restored).all())]))
"""
    given, returned, finite = json.loads(fly(flight_site, code, str(request.getfixturevalue("tiny_bundle"))))
    assert returned == given
    assert finite


def test_runtime_flies(flight_site: Path) -> None:
    code = """
import importlib, pathlib, pkgutil, runtime
for module in pkgutil.walk_packages(runtime.__path__, "runtime."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in sys.argv[1:]:
            raise
    print(module.name)
"""
    imported = set(fly(flight_site, code, *GROUND, "runtime", "deploy").split())
    assert {"runtime.errors", "runtime.metrics", "runtime.files.envi"} <= imported
