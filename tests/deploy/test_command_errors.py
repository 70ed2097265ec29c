"""What is nobody's input: bugs of ours, interruptions, lack of memory, readers that go away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import console
from deploy.answers import BUG, INTERRUPTED
from deploy.commands import doctor
from runtime.errors import GateError
from tests.contracts.bundles import known_bundle
from tests.contracts.command import ERROR, Done, assert_failed, assert_json_error, assert_plain, command_line, invoke

Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `deploy doctor` fail where it looks at the machine."""

    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor, "_machine", fails)


def logged(text: str) -> str:
    """The log that a message names, which is then removed."""
    match = re.search(r"please report it with (\S+\.log)", text)
    assert match
    path = Path(match[1])
    content = path.read_text()
    path.unlink()
    return content


def test_a_bug_is_exit_70_with_a_log(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RuntimeError("of all \x1b[31mthings"))
    done = invoke(capsys, "doctor")
    assert done.code == BUG == 70 and done.out == "" and done.err.count("\n") == 1
    assert done.err.startswith("deploy: a bug of ours: RuntimeError; please report it with ")
    assert "of all" not in done.err
    content = logged(done.err)
    assert "Traceback" in content and "of all" in content and "doctor.py" in content


def test_a_bug_is_told_to_machines_too(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyError("x"))
    done = invoke(capsys, "doctor", "--json")
    error = done.json["error"]
    assert done.code == error["code"] == BUG and error["kind"] == "Bug"
    assert {"file", "key", "value", "remedy"} <= set(error)
    assert "KeyError" in logged(error["message"])


def test_a_result_that_is_no_json_is_a_bug(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.command, "callback", lambda: {"figure": float("nan")})
    done = invoke(capsys, "doctor", "--json")
    assert done.code == done.json["error"]["code"] == BUG
    assert "ValueError" in logged(done.err)


def test_an_interruption_is_exit_130(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    done = invoke(capsys, "doctor")
    assert done.code == INTERRUPTED == 130 and done.err.splitlines()[-1] == "deploy: interrupted"
    told = invoke(capsys, "doctor", "--json")
    assert told.code == told.json["error"]["code"] == 130 and told.json["error"]["kind"] == "Interrupted"


def test_a_failed_gate_is_exit_1_with_its_figures(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    error = GateError("too far", key="psnr", value=0.5, remedy="at most 0.1")
    failing(monkeypatch, error)
    assert assert_failed(invoke(capsys, "doctor"), 1) == "psnr: too far (found 0.5); at most 0.1"
    told = assert_json_error(invoke(capsys, "doctor", "--json"), 1)
    assert (told["key"], told["value"], told["remedy"]) == ("psnr", "0.5", "at most 0.1")


def test_too_little_memory_is_the_machines_fault(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    program = (
        "import resource, sys; from deploy.cli import run; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
        "sys.exit(run(sys.argv[1:]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "simulate", "--out", "a.npy", "--size", "700x700", "--bands", "4096", "--json"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    done = Done(ran.returncode, ran.stdout, ran.stderr)
    assert assert_json_error(done, 3)["message"] == "there is not enough memory"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("doctor",), ("schema",), ("schema", "--json"), ("--help",)])
def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = subprocess.run(
            command_line(*arguments),
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Broken" not in done.stderr


def test_json_speaks_to_machines_for_one_command_line_only(capsys: Capsys) -> None:
    assert invoke(capsys, "doctor", "--json").err
    done = invoke(capsys, "doctor")
    assert done.err == "" and "engine onnxruntime" in done.out


def test_warnings_of_one_command_line_are_not_those_of_the_next(capsys: Capsys) -> None:
    console.warn("of before")
    done = invoke(capsys, "doctor", "--json")
    assert done.json["warnings"] == [] and "of before" not in done.err


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "a\nb",
        "a\r\x1b[2K",
        "\x9b31m",
        "\u202eright",
        "\u2028",
        "\udcff",
        "[red]x[/red]",
        ":skull:",
    ],
)
def test_text_from_files_is_escaped_wherever_it_is_said(capsys: Capsys, text: str) -> None:
    capsys.readouterr()
    console.speak_to(machines=False)
    console.say(f"file       {text}")
    console.warn(f"file {text}")
    console.complain(f"{ERROR}{text}")
    console.table("files", ("file", "bytes"), [(text, text)])
    captured = capsys.readouterr()
    assert_plain(Done(0, captured.out, captured.err))
    assert captured.err.count("\n") == 2 and captured.out.startswith("file       ")
    if text.isprintable():
        assert text in captured.out and captured.err.count(text) == 2
    console.warnings.clear()


def test_a_file_name_that_is_no_unicode_is_told(capsys: Capsys, tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path / "x") + b"\xff\xfe.hdr")
    bundle = known_bundle(tmp_path / "bundle")
    done = invoke(capsys, "run", bundle, name, "--out", tmp_path / "o.hdr")
    assert_failed(done, 2, "\\udcff\\udcfe.hdr", "no such file")
    error = json.loads(invoke(capsys, "inspect", name, "--json").out)["error"]
    assert error["file"] == name
