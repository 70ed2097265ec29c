"""The builder is held against the memory that this process may take, and charged only with what it takes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.targets import BUILT_IN, SHARED_MEMORY
from export.tensorrt import build
from export.tensorrt.build import Request, build_engine, check_memory, needed_mib
from runtime.errors import MachineError
from runtime.files.disk import available_memory
from tests.export.test_tensorrt_child import RELU, StartError, needs_rtx

V1 = "sys/fs/cgroup/memory"
V2 = "sys/fs/cgroup"
VAST = "9223372036854771712"


def system(folder: Path, groups: str, files: dict[str, str]) -> Path:
    """A machine of 8000 KiB with these control groups."""
    contents = {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\nSwapFree: 5000 kB\n",
        "proc/self/cgroup": groups,
        **files,
    }
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def group(folder: str, names: tuple[str, ...], limit: object, used: int, stat: str) -> dict[str, str]:
    return dict(zip((f"{folder}/{name}" for name in names), (f"{limit}\n", f"{used}\n", stat), strict=True))


def v2(folder: str, limit: object, used: int, stat: str = "anon 1\n") -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def v1(folder: str, limit: object, used: int, stat: str = "cache 1\n") -> dict[str, str]:
    return group(folder, ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"), limit, used, stat)


CACHED = "anon 5\nactive_file 30\ninactive_file 20\n"
MACHINE = 8000 * 1024


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("", {}, MACHINE, id="no groups"),
        pytest.param("damage\n0::/\n", v2(V2, 900, 0), MACHINE, id="damaged"),
        pytest.param("0::/\n", {}, MACHINE, id="no limit at the root"),
        pytest.param("0::/a/b\n", v2(f"{V2}/a/b", 1000, 400), 600, id="v2"),
        pytest.param("0::/a/b\n", v2(f"{V2}/a/b", "max", 400) | v2(f"{V2}/a", 1000, 100), 900, id="v2 outer"),
        pytest.param("0::/a/b\n", v2(f"{V2}/a/b", 500, 400) | v2(f"{V2}/a", 1000, 100), 100, id="v2 inner"),
        pytest.param("0::/\n", v2(V2, 1000, 1000, CACHED), 50, id="v2 container, file caches"),
        pytest.param("0::/\n", v2(V2, 1000, 1200), 0, id="v2 over its limit"),
        pytest.param("0::/\n", v2(V2, 1 << 40, 0), MACHINE, id="v2 above the machine"),
        pytest.param("0::/../../x\n", v2(V2, 1000, 0), 1000, id="v2 outside the container"),
        pytest.param("5:cpu:/a\n4:hugetlb,memory:/a\n0::/\n", v1(f"{V1}/a", 1000, 300), 700, id="v1"),
        pytest.param("4:memory:/a\n", v1(f"{V1}/a", VAST, 300), MACHINE, id="v1 without limit"),
        pytest.param(
            "4:memory:/docker/12ab\n",
            v1(V1, 1000, 1000, "active_file 1\ntotal_active_file 3\ntotal_inactive_file 4\n"),
            7,
            id="v1 container, file caches",
        ),
    ],
)
def test_memory_is_what_machine_and_control_groups_leave(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert available_memory(system(tmp_path, groups, files)) == expected


def test_this_machine_has_memory(tmp_path: Path) -> None:
    assert 1 << 20 < available_memory() < 1 << 46
    assert available_memory(tmp_path) > 1 << 20


def test_too_little_memory_says_what_helps() -> None:
    needed = needed_mib(RELU, 64)
    check_memory(RELU, 64, needed << 20)
    with pytest.raises(MachineError, match=r"memory.*MiB free.*close other programs, or .*workspace_mib$"):
        check_memory(RELU, 64, (needed << 20) - 1)
    with pytest.raises(MachineError, match=r"; close other programs$"):
        check_memory(RELU, 0, 0)


@pytest.mark.parametrize(
    ("kind", "sm", "charged"),
    [
        ("tensorrt", "8.7", True),
        ("tensorrt", "11.0", True),
        ("tensorrt", "8.0", False),
        pytest.param("tensorrt-rtx", "8.9", False, marks=needs_rtx),
    ],
)
def test_workspace_is_charged_where_it_comes_out_of_the_hosts_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sm: str, charged: bool
) -> None:
    def run(*request: object) -> None:
        raise StartError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "tensorrt_version", lambda kind: "10.3.0")
    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build, "available_memory", lambda: needed_mib(RELU, 0) << 20)
    with pytest.raises(MachineError if charged else StartError):
        build_engine(RELU, Request(kind, sm, 4096), tmp_path / "w")


def test_the_targets_that_share_memory_are_the_jetsons() -> None:
    shared = {t.name for t in BUILT_IN.values() if t.sm in SHARED_MEMORY}
    assert shared == {name for name in BUILT_IN if name.startswith("jetson")}
