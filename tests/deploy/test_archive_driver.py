"""What a driver does with workers that are real processes: refusals, retries, deaths, ends, a ledger that is lost."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from deploy.archive.driver import Pace
from deploy.archive.ledger import Ledger, Row, totals
from deploy.archive.order import FOLDER
from deploy.archive.run import InterruptedArchiveError, Means, run_archive
from runtime.errors import GateError, InputError, MachineError
from tests.deploy.archive_craft import begun, craft, jobs, order

FAST = Pace(waits=(0.1, 0.1), pause=0.2)
MEANS = Means(workers=2, memory=1 << 29)


def rows(out: Path) -> dict[str, Row]:
    with Ledger(out / FOLDER) as ledger:
        return {Path(row.path).stem: row for row in ledger.rows(current=True)}


def test_each_comes_to_its_end_and_the_next_run_does_only_what_is_left(tmp_path: Path) -> None:
    inputs = jobs(
        tmp_path / "in", a="write 0", b="write 0", c="refuse", d="shake 1", e="shake 99", f="bug", g="die", h="die 1",
        i="crash", j="large 999999999999",
    )  # fmt: skip
    jobs(inputs / "deeper", a="write 0")
    (inputs / "k.odd").write_text("")
    out = tmp_path / "out"
    with pytest.raises(GateError) as caught:
        run_archive(order(inputs), out, MEANS, craft=craft(), pace=FAST)
    assert caught.value.report is not None
    counted = caught.value.report["products"]
    assert counted == {
        "planned": 12, "done": 5, "present": 0, "refused": 3, "failed": 2, "quarantined": 2, "left": 0,
    }  # fmt: skip
    assert caught.value.exit_code == 1 and "7 of 12 products were not restored" in caught.value.problem
    for name in ("a.npz", "b.npz", "d.npz", "h.npz", "deeper/a.npz"):
        assert (out / name).read_text() == f"restored {Path(name).stem}.job\n"
    told = rows(out)
    assert told["c"].line == f"{inputs}/c.job, cube: is no cube; give another"
    assert told["e"].line is not None and "Input/output error" in told["e"].line
    assert (
        told["j"].line is not None
        and "restoring it takes 953674 MiB of memory, a worker of 0.50 GiB may" in told["j"].line
    )
    assert {name: told[name].state for name in "fgik"} == {
        "f": "failed", "g": "quarantined", "i": "quarantined", "k": "refused",
    }  # fmt: skip
    assert (told["e"].attempts, told["g"].deaths, told["h"].deaths) == (3, 4, 0)
    # Who dies takes a worker each time; who stood beside it is not blamed, and is done at most once more for each.
    tried = begun(inputs)
    assert tried["g"] == 4 and tried["h"] >= 2 and tried["d"] >= 2 and max(tried.values()) <= 6
    assert not list(out.rglob(".*.part"))
    events = [json.loads(line) for line in (out / FOLDER / "events.jsonl").read_text().splitlines()]
    assert any("ZeroDivisionError" in event.get("traceback", "") for event in events)
    assert events[-1]["event"] == "ended" and events[-1]["products"] == counted
    prometheus = (out / FOLDER / "archive.prom").read_text()
    assert 'damp_archive_products{state="done"} 5\n' in prometheus

    before = begun(inputs)
    with pytest.raises(GateError) as caught:
        run_archive(order(inputs), out, MEANS, craft=craft(), pace=FAST)
    assert caught.value.report is not None
    assert caught.value.report["products"] == {
        "planned": 12, "done": 0, "present": 5, "refused": 3, "failed": 2, "quarantined": 2, "left": 0,
    }  # fmt: skip
    again = {name for name, times in begun(inputs).items() if times != before[name]}
    assert again == {"e", "f"}


def test_a_ledger_that_is_lost_or_damaged_costs_a_scan(tmp_path: Path) -> None:
    inputs, out = jobs(tmp_path / "in", a="write 0", b="write 0"), tmp_path / "out"
    assert run_archive(order(inputs), out, MEANS, craft=craft())["products"]["done"] == 2
    for damage in (b"no ledger at all" * 1000, None):
        file = out / FOLDER / "ledger.sqlite"
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        assert run_archive(order(inputs), out, MEANS, craft=craft())["products"]["present"] == 2
    assert begun(inputs) == {"a": 1, "b": 1}
    assert list((out / FOLDER).glob("ledger.sqlite.damaged-*"))


def test_two_drivers_at_one_archive_are_one_too_many(tmp_path: Path) -> None:
    inputs, out = jobs(tmp_path / "in", a="write 30"), tmp_path / "out"
    with driver(inputs, out) as first:
        wait_for(inputs / "a.begun")
        with pytest.raises(InputError, match="another driver is at this archive") as caught:
            run_archive(order(inputs), out, MEANS, craft=craft())
        assert f"process {first.pid}" in str(caught.value.value)
        first.send_signal(signal.SIGKILL)
        first.wait()
    # What it held is free, and the product is whole or absent.
    jobs(inputs, a="write 0")
    assert run_archive(order(inputs), out, MEANS, craft=craft())["products"]["done"] == 1
    assert not list(out.rglob(".*.part"))


def test_a_signal_lets_running_products_end_and_a_rerun_goes_on(tmp_path: Path) -> None:
    inputs = jobs(tmp_path / "in", **{f"a{n}": "write 0.5" for n in range(8)})
    out = tmp_path / "out"
    with driver(inputs, out) as one:
        wait_for(inputs / "a0.begun")
        one.send_signal(signal.SIGTERM)
        said = one.communicate(timeout=60)[0]
    assert one.returncode == InterruptedArchiveError.exit_code == 130, said
    whole = {path.stem for path in out.glob("*.npz")}
    states = {name: row.state for name, row in rows(out).items()}
    assert {name for name, state in states.items() if state == "done"} == whole and 2 <= len(whole) < 8
    assert {state for name, state in states.items() if name not in whole} == {"planned"}
    counted = run_archive(order(inputs), out, MEANS, craft=craft())["products"]
    assert counted["present"] == len(whole) and counted["done"] == 8 - len(whole) and counted["left"] == 0


def test_more_memory_than_there_is_is_refused_before_anything_starts(tmp_path: Path) -> None:
    inputs = jobs(tmp_path / "in", a="write 0")
    with pytest.raises(MachineError, match=r"2 workers of 9000\.00 GiB take more memory than there is"):
        run_archive(order(inputs), tmp_path / "out", Means(workers=2, memory=9000 << 30), craft=craft())
    assert begun(inputs) == {}


def test_memory_that_is_enough_for_no_product_refuses_none(tmp_path: Path) -> None:
    inputs, out = jobs(tmp_path / "in", a="large 999999999"), tmp_path / "out"
    with pytest.raises(InputError, match=r"the smallest takes 954 MiB") as caught:
        run_archive(order(inputs), out, MEANS, craft=craft())
    assert caught.value.key == "--memory" and rows(out) == {}


def test_totals_balance() -> None:
    counted = totals(["done", "done", "running", "planned", "refused", "quarantined", "present", "failed"])
    assert counted.pop("planned") == sum(counted.values()) == 8


class driver:  # noqa: N801
    """`run_archive` in a process of its own, ended in any case."""

    def __init__(self, inputs: Path, out: Path, means: Means = MEANS) -> None:
        code = (
            "import pickle, sys\nfrom pathlib import Path\nfrom deploy.archive.run import run_archive\n"
            "from runtime.errors import DeployError\nfrom tests.deploy.archive_craft import craft, order\n"
            "if __name__ == '__main__':\n"
            "    means = pickle.loads(bytes.fromhex(sys.argv[3]))\n"
            "    try:\n"
            "        run_archive(order(Path(sys.argv[1])), Path(sys.argv[2]), means, craft=craft())\n"
            "    except DeployError as error:\n"
            "        print(error, flush=True)\n"
            "        sys.exit(error.exit_code)\n"
        )
        script = out.with_suffix(".py")
        script.write_text(code)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(inputs), str(out), pickle.dumps(means).hex()], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(path: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.05)
