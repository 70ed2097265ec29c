"""What boards tell: recorded lines of NVIDIA's tools, a made-up sysfs, and commands that hang."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.board import Reading, board_model, forget_peak_memory, parse_tegrastats, peak_memory_mib, read_board
from runtime.board_jetpack import JetPack, read_jetpack
from runtime.board_tools import (
    JETSON_CLOCKS,
    NVPMODEL,
    SMI,
    TEGRASTATS,
    Gpu,
    listen,
    parse_jetson_clocks,
    parse_nvidia_smi,
    parse_nvpmodel,
)
from runtime.board_watch import INTERVAL, BoardWatch, Spread, Watched

# Recorded: owners of these boards published what the tools printed on them.
AGX_ORIN_JETPACK_6 = (
    "10-05-2026 21:03:35 RAM 5137/62841MB (lfb 2x4MB) SWAP 0/31420MB (cached 0MB) CPU [1%@729,25%@729,1%@729,1%@729,"
    "2%@729,1%@729,0%@729,0%@729,2%@729,14%@729,1%@729,0%@729] GR3D_FREQ 0% cpu@52.875C soc2@48.656C soc0@49.062C "
    "tj@52.875C soc1@49.031C VDD_GPU_SOC 3178mW/3178mW VDD_CPU_CV 794mW/794mW VIN_SYS_5V0 4543mW/4543mW"
)
ORIN_NANO_JETPACK_6 = (
    "09-17-2026 02:10:16 RAM 1483/7620MB (lfb 105x4MB) SWAP 253/12002MB (cached 2MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729] GR3D_FREQ 62%@612 cpu@47.75C soc2@46.718C soc0@47.25C gpu@50C tj@50C soc1@48.093C "
    "VDD_IN 4541mW/4541mW VDD_CPU_GPU_CV 521mW/521mW VDD_SOC 1446mW/1473mW"
)
# Composed: the fields that NVIDIA's "tegrastats Utility" pages of Jetson Linux 35 and 39 describe, with made-up values.
ORIN_NX_JETPACK_5 = (
    "RAM 1224/15368MB (lfb 8x4MB) SWAP 0/7684MB (cached 0MB) CPU [1%@729,0%@729,0%@729,0%@1190,off,off,off,off] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] CPU@43.5C GPU@42.5C tj@43.5C SOC0@42.906C SOC1@42.156C CV0@-256C "
    "VDD_IN 4319mW/4400mW VDD_CPU_GPU_CV 499mW/499mW VDD_SOC 1200mW/1200mW"
)
AGX_ORIN_JETPACK_7 = (
    "07-01-2026 10:00:00 RAM 20000/62800MB (lfb 1x2MB) CPU [20%@2201,10%@2201,30%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1290] NVENC0 off NVDEC0 off VIC off PVA0_FREQ off APE 174 cpu@52.5C/53.5C soc2@48.5C/48.5C "
    "gpu@47.625C/47.625C VDD_GPU_SOC 5100mW/5000mW/5200mW VDD_CPU_CV 3200mW/3200mW/3200mW VIN_SYS_5V0 5500mW/5500mW"
)
SHOWN_MOVING = """SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-5
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=729600 IdleStates: WFI=1 c7=1
cpu5:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=1190400 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=69
NV Power Mode: 25W
"""
SHOWN_LOCKED = """\
cpu0: Online=1 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000 IdleStates: WFI=0 c7=0
cpu1: Online=0 Governor=schedutil MinFreq=102000 MaxFreq=1479000 CurrentFreq=102000 IdleStates: WFI=0 c7=0
GPU MinFreq=921600000 MaxFreq=921600000 CurrentFreq=921600000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
"""
VERBOSE_MODE = """NVPM VERB: Config file: /etc/nvpmodel.conf
NVPM VERB: parsing done for /etc/nvpmodel.conf
NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE
2
"""


def test_tegrastats_of_jetpack_6() -> None:
    agx, nano = parse_tegrastats(AGX_ORIN_JETPACK_6), parse_tegrastats(ORIN_NANO_JETPACK_6)
    assert agx is not None and nano is not None
    assert agx.cpu_mhz == (729.0,) * 12 and agx.gpus[0].clock_mhz is None and agx.gpus[0].memory_clock_mhz is None
    assert agx.temperatures_c == {"cpu": 52.875, "soc2": 48.656, "soc0": 49.062, "tj": 52.875, "soc1": 49.031}
    assert agx.power_w == {"VDD_GPU_SOC": 3.178, "VDD_CPU_CV": 0.794, "VIN_SYS_5V0": 4.543}
    assert nano.gpus[0].clock_mhz == 612 and nano.temperatures_c["gpu"] == 50
    assert nano.power_w == {"VDD_IN": 4.541, "VDD_CPU_GPU_CV": 0.521, "VDD_SOC": 1.446}
    assert agx.gpus[0].memory_mib == 5137 and nano.gpus[0].memory_mib == 1483


def test_tegrastats_of_jetpack_5_leaves_out_what_is_off() -> None:
    line = parse_tegrastats(ORIN_NX_JETPACK_5)
    assert line is not None
    assert line.cpu_mhz == (729, 729, 729, 1190)
    assert line.gpus[0].clock_mhz == 305 and line.gpus[0].memory_clock_mhz == 2133
    # A sensor without power says -256.
    assert set(line.temperatures_c) == {"cpu", "gpu", "tj", "soc0", "soc1"}
    # Now, not on average.
    assert line.power_w["VDD_IN"] == 4.319


def test_tegrastats_of_jetpack_7() -> None:
    line = parse_tegrastats(AGX_ORIN_JETPACK_7)
    assert line is not None
    assert line.gpus[0].clock_mhz == 1300 and line.gpus[0].memory_clock_mhz == 3199 and line.cpu_mhz == (2201,) * 3
    assert line.temperatures_c == {"cpu": 52.5, "soc2": 48.5, "gpu": 47.625}
    assert line.power_w == {"VDD_GPU_SOC": 5.1, "VDD_CPU_CV": 3.2, "VIN_SYS_5V0": 5.5}
    thor = parse_tegrastats("RAM 4722/7844MB (lfb 1x512kB) GR3D_FREQ @[1000,1001,1000] VDD_GPU -392mW/-392mW")
    assert thor is not None and thor.gpus[0].clock_mhz == 1001 and thor.power_w == {"VDD_GPU": -0.392}


@pytest.mark.parametrize("text", ["", "tegrastats: not found", "RAM", "cpu@40C VDD_IN 1mW/1mW"])
def test_other_lines_are_not_tegrastats(text: str) -> None:
    assert parse_tegrastats(text) is None


def test_power_modes() -> None:
    assert parse_nvpmodel("NV Power Mode: MAXN\n0\n") == "MAXN"
    assert parse_nvpmodel("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n") == "25W"
    assert parse_nvpmodel(VERBOSE_MODE) == "MODE_15W_6CORE"
    assert parse_nvpmodel("NV Power Mode:\n") is None and parse_nvpmodel("Error opening file") is None


def test_locked_clocks() -> None:
    assert parse_jetson_clocks(SHOWN_MOVING) is False
    # A core that is off does not count.
    assert parse_jetson_clocks(SHOWN_LOCKED) is True
    assert parse_jetson_clocks(SHOWN_LOCKED.replace("GPU MinFreq=921600000", "GPU MinFreq=76800000")) is False
    assert parse_jetson_clocks("Error: Run this script(/usr/bin/jetson_clocks) as a root user") is None
    assert parse_jetson_clocks(SHOWN_LOCKED.replace("GPU", "gpu")) is None


def test_nvidia_smi() -> None:
    text = "0, NVIDIA GeForce RTX 4090, 2520, 3105, 10501, 371.22, 450.00, 57, 1834\n"
    text += "1, Odd, Name, 210, 2100, [N/A], 11.33, [N/A], 35, 2\n"
    assert parse_nvidia_smi(text) == (
        Gpu("NVIDIA GeForce RTX 4090", 2520, 3105, 10501, 371.22, 450, 57, 1834),
        Gpu("Odd, Name", 210, 2100, None, 11.33, None, 35, 2, index=1),
    )
    orin = "0, Orin (nvgpu), [N/A], [N/A], [N/A], [N/A], [Not Supported], [Unknown Error], [N/A]\n"
    assert parse_nvidia_smi(orin) == (Gpu("Orin (nvgpu)"),)
    assert parse_nvidia_smi("No devices were found\n") == parse_nvidia_smi("") == ()
    assert parse_nvidia_smi("0, A, nan, inf, -1, 1e3, +5, 0x10, -\n") == (Gpu("A"),)
    assert parse_nvidia_smi("A, 1, 2, 3, 4, 5, 6, 7, 8\n") == ()


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two kinds of cores, the tenth after the second, and four thermal zones of which two can be read."""
    for core, (now, least, most) in {
        0: (1200000, 800000, 3000000),
        2: (2400000, 800000, 3000000),
        10: (900000, 400000, 1500000),
    }.items():
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        for name, value in (("cur", now), ("min", least), ("max", most)):
            (folder / f"scaling_{name}_freq").write_text(f"{value}\n")
        (folder / "scaling_governor").write_text("powersave\n" if core else "performance\n")
    for zone, (kind, temperature) in enumerate(
        [("cpu-thermal", "45500"), ("x86_pkg_temp", "-274000"), ("cpu-thermal", "47000"), ("gpu-thermal", None)]
    ):
        folder = tmp_path / f"sys/class/thermal/thermal_zone{zone}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(kind + "\n")
        # Reading a sensor that is off fails; a folder fails as well.
        (folder / "temp").mkdir() if temperature is None else (folder / "temp").write_text(temperature + "\n")
    (tmp_path / "proc").mkdir()
    return tmp_path


def silent(command: Sequence[str], first_line: bool) -> str | None:
    return None


def test_a_linux_board_is_read_from_the_kernel(sysfs: Path) -> None:
    reading = read_board(sysfs, silent)
    assert reading == Reading(
        cpu_mhz=(1200.0, 2400.0, 900.0),
        cpu_min_mhz=400.0,
        cpu_max_mhz=3000.0,
        governor="performance, powersave",
        temperatures_c={"cpu": 45.5, "cpu 2": 47.0},
    )
    assert json.loads(json.dumps(reading.as_json(), allow_nan=False)) == reading.as_json()


def test_a_board_that_tells_nothing_is_not_invented(tmp_path: Path) -> None:
    assert read_board(tmp_path, silent) == Reading() and board_model(tmp_path) is None
    assert peak_memory_mib(tmp_path) is None
    assert read_board(tmp_path, lambda command, first: "rubbish\n\x1b[31m") == Reading()


def test_a_jetson_is_read_with_its_own_tools(sysfs: Path) -> None:
    said = {TEGRASTATS: ORIN_NANO_JETPACK_6, NVPMODEL: "NV Power Mode: 25W\n1\n", JETSON_CLOCKS: SHOWN_MOVING}
    asked = []

    def tell(command: Sequence[str], first_line: bool) -> str | None:
        asked.append((tuple(command), first_line))
        return said[tuple(command)]

    reading = read_board(sysfs, tell)
    # tegrastats never ends by itself; nvidia-smi knows nothing of a Jetson's GPU.
    assert asked == [(TEGRASTATS, True), (NVPMODEL, False), (JETSON_CLOCKS, False)]
    assert reading.power_mode == "25W" and reading.clocks_locked is False
    assert reading.gpus == (Gpu("integrated", clock_mhz=612, memory_mib=1483),)
    assert reading.temperatures_c["cpu"] == 47.75 and reading.temperatures_c["cpu 2"] == 47.0
    assert reading.power_w["VDD_IN"] == 4.541
    assert reading.cpu_mhz == (1200.0, 2400.0, 900.0)


def test_a_desktop_is_asked_for_its_gpus(sysfs: Path) -> None:
    said = {SMI: "0, NVIDIA H100 80GB HBM3, 1980, 1980, 2619, 120.50, 700.00, 33, 512\n"}
    reading = read_board(sysfs, lambda command, first_line: said.get(tuple(command)))
    assert reading.gpus == (Gpu("NVIDIA H100 80GB HBM3", 1980, 1980, 2619, 120.5, 700, 33, 512),)
    assert reading.power_mode is None and reading.power_w == {}


def test_the_model_is_the_device_trees_or_the_machines_or_the_cpus(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "sys/class/dmi/id").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\nprocessor\t: 1\n")
    assert board_model(tmp_path) == "Some CPU @ 2.00GHz"
    (tmp_path / "sys/class/dmi/id/product_name").write_text("Some Box\n")
    assert board_model(tmp_path) == "Some Box"
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert board_model(tmp_path) == "NVIDIA Jetson AGX Orin Developer Kit"


def test_peak_memory(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmPeak:\t  999999 kB\nVmHWM:\t   61696 kB\nVmRSS:\t 1 kB\n")
    assert peak_memory_mib(tmp_path) == 60.25
    assert forget_peak_memory(tmp_path) is False
    (tmp_path / "proc/self/clear_refs").write_text("")
    assert forget_peak_memory(tmp_path) is True and (tmp_path / "proc/self/clear_refs").read_text() == "5"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no Linux")
def test_peak_memory_counts_from_when_it_is_asked_to() -> None:
    held = bytes(range(256)) * (1 << 19)
    high = peak_memory_mib()
    del held
    if not forget_peak_memory():
        pytest.skip("this kernel does not let us")
    low = peak_memory_mib()
    assert high is not None and low is not None and low < high - 64


def script(folder: Path, text: str) -> str:
    path = folder / "tool"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(os.name != "posix", reason="shell scripts stand in for the tools")
def test_commands_are_heard_and_never_waited_for(tmp_path: Path) -> None:
    assert listen([script(tmp_path, 'echo "$1 $LC_ALL"; echo two'), "one"]) == "one C\ntwo\n"
    assert listen([script(tmp_path, "echo first; exec sleep 60")], True) == "first"
    assert listen([script(tmp_path, "echo cannot; exit 3")]) is None
    assert listen([str(tmp_path / "absent")]) is None
    began = time.monotonic()
    assert listen([script(tmp_path, "echo half; sleep 60")], False, 0.2) is None
    assert listen([script(tmp_path, "sleep 60")], True, 0.2) is None
    # The scripts' own `sleep` keeps the pipe open for a minute.
    assert time.monotonic() - began < 30
    assert listen([script(tmp_path, "yes | head -c 1000000; echo; exit 0")]) is None


def set_clock(sysfs: Path, megahertz: int) -> None:
    (sysfs / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text(f"{1000 * megahertz}\n")


def test_a_board_is_watched_from_its_restart_to_the_last_moment(sysfs: Path) -> None:
    with BoardWatch(sysfs, (), 3600) as watch:
        set_clock(sysfs, 5000)
        assert watch.watched().cpu_mhz == Spread(900, 2400, 5000)
        watch.restart()
        set_clock(sysfs, 1000)
        watch.watched()
        set_clock(sysfs, 3000)
        told = watch.watched()
    assert told.samples == 2 and told.cpu_mhz == Spread(900, 1700, 3000)
    assert told.temperatures_c == {"cpu": Spread(45.5, 45.5, 45.5), "cpu 2": Spread(47, 47, 47)}
    assert told.power_w == {} and told.gpus == {}
    assert json.loads(json.dumps(told.as_json(), allow_nan=False)) == told.as_json()


def test_a_board_is_read_again_and_again(sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.board_watch.MOST_READINGS", 16)
    with BoardWatch(sysfs, (), 0.001) as watch:
        deadline = time.monotonic() + 30
        while watch._samples < 32 and time.monotonic() < deadline:
            time.sleep(0.01)
        told = watch.watched()
        # Days of readings do not fill the memory that is measured.
        assert told.samples >= 32 and len(watch._readings) <= 17
    assert 0.5 <= INTERVAL <= 2
    with BoardWatch(sysfs / "absent", (), 3600) as watch:
        assert watch.watched() == Watched(1)


@pytest.mark.skipif(os.name != "posix", reason="shell scripts stand in for the tools")
def test_tools_print_while_a_board_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.board_watch.SECONDS", 5.0)
    go, pid = tmp_path / "go", tmp_path / "pid"
    before = "0, A, 210, 2000, 405, 20.00, 300.00, 30, 1\\n1, B, 1, 1, 1, 1, 1, 1, 1\\n"
    lines = "0, A, 1900, 2000, 405, 250.00, 300.00, 60, 900\\n0, A, 1800, 2000, 405, 240.50, [N/A], 62, 900\\n"
    text = f"echo $$ > {pid}; printf '{before}'; while [ ! -e {go} ]; do sleep 0.02; done; printf '{lines}0, A, 99'\n"
    tool = script(tmp_path, text + "exec sleep 60")
    (tmp_path / "dumb").mkdir()
    dumb = script(tmp_path / "dumb", "exit 0")
    with BoardWatch(tmp_path, ([str(tmp_path / "absent")], [dumb], [tool]), 3600) as watch:
        watch.restart()
        go.touch()
        deadline = time.monotonic() + 30
        while not watch.watched().gpus and time.monotonic() < deadline:
            time.sleep(0.02)
        told = watch.watched()
        process = int(pid.read_text())
        os.kill(process, 0)
    assert told.gpus == {
        0: {
            "clock_mhz": Spread(1800, 1850, 1900),
            "memory_clock_mhz": Spread(405, 405, 405),
            "power_w": Spread(240.5, 245.25, 250),
            "temperature_c": Spread(60, 61, 62),
            "memory_mib": Spread(900, 900, 900),
        }
    }
    assert json.loads(json.dumps(told.as_json()))["gpus"][0]["power_w"]["most"] == 250
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.skipif(os.name != "posix", reason="shell scripts stand in for the tools")
def test_a_jetsons_own_tool_is_heard(tmp_path: Path) -> None:
    go, line = tmp_path / "go", f"echo '{ORIN_NANO_JETPACK_6}'"
    text = f"{line}; while [ ! -e {go} ]; do sleep 0.02; done; {line}; exec sleep 60"
    with BoardWatch(tmp_path, ([script(tmp_path, text)],), 3600) as watch:
        go.touch()
        deadline = time.monotonic() + 30
        while not (told := watch.watched()).gpus and time.monotonic() < deadline:
            time.sleep(0.02)
    assert told.power_w["VDD_IN"] == Spread(4.541, 4.541, 4.541) and told.cpu_mhz == Spread(729, 729, 729)
    assert told.gpus[0]["clock_mhz"].most == 612 and told.gpus[0]["memory_mib"].most == 1483


# JetPack

RELEASED = "# R{}, REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
INSTALLED = """\
Package: libc6
Status: install ok installed
Version: 2.39-0ubuntu8

Package: nvidia-jetpack
Status: {0} ok {1}
Priority: standard
Version: {2}
Depends: nvidia-jetpack-runtime (= {2}), nvidia-jetpack-dev (= {2})

Package: nvidia-l4t-core
Status: install ok installed
Version: {3}
"""


def jetson(root: Path, release: str = "", packages: str = "") -> Path:
    """A system's root with L4T's file and the records of dpkg, where they are given."""
    for name, text in (("etc/nv_tegra_release", release), ("var/lib/dpkg/status", packages)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text:
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("major", "revision", "version", "tensorrt", "python"),
    [
        ("35 (release)", "6.2", "5", "8.5", "3.8"),
        ("36 (release)", "4.0", "6.1", "10.3", "3.10"),
        ("36 (release)", "4.3", "6.2", "10.3", "3.10"),
        ("38 (release)", "4.0", "7.1", "10.13", "3.12"),
        ("39 (release)", "2.0", "7.2", "10.16", "3.12"),
        ("39 (release)", "2.1", "7.2", "10.16", "3.12"),
        ("99 (release)", "1.0", None, None, None),
    ],
)
def test_the_jetpack_is_told_from_the_release_of_l4t(
    tmp_path: Path, major: str, revision: str, version: str | None, tensorrt: str | None, python: str | None
) -> None:
    read = read_jetpack(jetson(tmp_path, RELEASED.format(major, revision)))
    assert read == JetPack(f"{major[:2]}.{revision}", version, None, tensorrt, python)


def test_the_package_of_jetpack_knows_its_version_better(tmp_path: Path) -> None:
    packages = INSTALLED.format("install", "installed", "7.2.1-b44", "39.2.1-20260801000000")
    read = JetPack("39.2.1", "7.2.1", "7.2.1-b44", "10.16", "3.12")
    assert read_jetpack(jetson(tmp_path, packages=packages)) == read
    assert read_jetpack(jetson(tmp_path, RELEASED.format("39 (release)", "2.1"))) == read


def test_a_package_that_was_removed_tells_nothing(tmp_path: Path) -> None:
    packages = INSTALLED.format("deinstall", "config-files", "6.2+b77", "36.4.3-20250107174145")
    assert read_jetpack(jetson(tmp_path, packages=packages)) == JetPack("36.4.3", "6.2", None, "10.3", "3.10")


def test_other_machines_have_no_jetpack(tmp_path: Path) -> None:
    assert read_jetpack(tmp_path) is None
    assert read_jetpack(jetson(tmp_path, "rubbish\x1b[31m", INSTALLED.partition("\n\n")[0])) is None
    (tmp_path / "etc/nv_tegra_release").unlink()
    (tmp_path / "etc/nv_tegra_release").mkdir()
    assert read_jetpack(tmp_path) is None
