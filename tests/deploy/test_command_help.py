"""Help, schema, completion and doctor: what people read before anything else."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest

from deploy import __version__
from deploy.cli import COMMANDS, app
from deploy.commands import doctor
from deploy.config import config_schema
from runtime.board_jetpack import JetPack
from runtime.bundle_files import read_manifest
from runtime.engines import ENGINES
from runtime.files import write_cube
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke, start

Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


def command_of(name: str) -> click.Command:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    return command


def shown_examples(name: str) -> list[list[str]]:
    """The example command lines of a subcommand, as the shell would split them, without the leading `deploy`."""
    lines = (command_of(name).epilog or "").splitlines()
    return [shlex.split(match[1]) for line in lines if (match := re.search(r"deploy ([^#|>)]+)", line))]


# Help


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(capsys: Capsys, flag: str) -> None:
    done = invoke(capsys, flag)
    assert done.code == 0 and done.err == ""
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.out, re.MULTILINE), name


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_that_takes_time(name: str) -> None:
    heavy = ("numpy", "scipy", "pydantic", "rich", "yaml", "h5py", "PIL", "onnxruntime", "torch", "dask", "asyncio")
    code = f"""
import sys
from deploy.cli import run
assert run(sys.argv[1:]) == 0
print([name for name in {heavy} if name in sys.modules])
"""
    words = [name] if name else []
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


HEAVY = (
    "h5py", "PIL", "matplotlib", "rasterio", "dask", "zarr", "yaml", "tarfile", "http.server", "scipy.ndimage",
    "scipy.interpolate", "scipy.io", "rich.live", "rich.progress", "torch", "onnx", "runtime.slots", "runtime.archive",
)  # fmt: skip
"""What neither a plain cube nor a plain stream of one needs."""


@pytest.mark.parametrize("words", ["run BUNDLE scene.hdr --out out.hdr", "stream BUNDLE --source envi:scene.hdr"])
def test_what_restores_imports_no_more_than_it_needs(
    tmp_path: Path, request: pytest.FixtureRequest, words: str
) -> None:
    bundle = str(request.getfixturevalue("tiny_bundle"))
    bands, lines, samples = read_manifest(bundle).signature.measured.shape[1:]
    write_cube(tmp_path / "scene.hdr", np.random.default_rng(0).random((bands, lines, samples), np.float32))
    code = f"""
import sys
from deploy.cli import run
assert run(sys.argv[1:]) == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    asked = [bundle if word == "BUNDLE" else word for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_tells_how_their_help_begins(name: str) -> None:
    _, told = COMMANDS[name]
    first = re.split(r"(?<=\.)\s", " ".join((command_of(name).help or "").split()))[0]
    assert told == first


def test_without_arguments_help_is_shown(capsys: Capsys) -> None:
    assert invoke(capsys) == invoke(capsys, "--help")


def test_the_version_is_told(capsys: Capsys) -> None:
    done = invoke(capsys, "--version")
    assert done.code == 0 and __version__ in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_examples(capsys: Capsys, name: str) -> None:
    done = invoke(capsys, name, "--help")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"Usage: deploy {name} ")
    examples = done.out.partition("Examples:\n")[2]
    assert all(
        f"deploy {shlex.join(line)}".replace("'", "") in examples.replace('"', "") for line in shown_examples(name)
    )
    assert "--json" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_command_lines_that_the_command_understands(name: str) -> None:
    examples = shown_examples(name)
    assert examples
    for first, *arguments in examples:
        assert first == name
        # Parses options and arguments, and runs nothing.
        command_of(name).make_context(name, list(arguments))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            help_text = parameter.help or ""
            assert help_text or parameter.name in ("bands", "seed"), parameter.name


# Usage


WRONG = [
    (("runn",), ("runn", "did you mean 'run'?", "deploy --help")),
    (("fly",), ("No such command 'fly'; see",)),
    (("--nope",), ("--nope",)),
    (("run", "--nope"), ("--nope", "deploy run --help")),
    (("schema", "extra"), ("extra", "deploy schema --help")),
    (("completion",), ("Missing argument",)),
    (("completion", "tcsh"), ("tcsh", "bash", "zsh", "fish")),
    (("doctor", "--verbose"), ("--verbose",)),
    (("",), ("No such command",)),
    (("build", "--size"), ("--size", "argument")),
    (("\x1b[31mrun",), ("\\x1b[31mrun",)),
    (("run\nnow",), ("run\\nnow",)),
]


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=range(len(WRONG)))
def test_wrong_usage_is_one_line_and_exit_2(capsys: Capsys, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    done = invoke(capsys, *arguments)
    assert_failed(done, 2, *parts)
    assert done.out == ""
    error = assert_json_error(invoke(capsys, arguments[0], "--json", *arguments[1:]), 2)
    assert error["file"] is error["key"] is error["value"] is None


def test_a_process_exits_with_2_as_well(tmp_path: Path) -> None:
    assert_failed(start("runn", cwd=tmp_path), 2, "runn")
    assert_json_error(start("runn", "--json", cwd=tmp_path), 2)


# Schema


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()


def schemas(node: Any) -> list[dict[str, Any]]:
    """Every schema inside a schema."""
    found = [node]
    for key in ("properties", "$defs"):
        for inner in node.get(key, {}).values():
            found += schemas(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            found += schemas(node[key])
    for inner in node.get("anyOf", []):
        found += schemas(inner)
    return found


def test_the_schema_is_a_json_schema_that_editors_can_read(capsys: Capsys) -> None:
    done = invoke(capsys, "schema")
    schema = json.loads(done.out)
    assert done.code == 0 and done.err == "" and schema == json.loads(json.dumps(config_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema" and schema["type"] == "object"
    assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
    kinds = {"object", "array", "string", "integer", "number", "boolean", "null"}
    for part in schemas(schema):
        assert part.get("type", "object") in kinds
        assert not part.keys() - KEYWORDS, part.keys() - KEYWORDS
        re.compile(part.get("pattern", ""))
        assert isinstance(part.get("required", []), list) and isinstance(part.get("enum", []), list)
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxItems", "minItems"):
            assert isinstance(part.get(key, 0), int | float)
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
        assert all(value["description"] for value in section["properties"].values())


KEYWORDS = {
    *("$schema", "$ref", "$defs", "title", "description", "default", "examples", "type", "enum", "const", "anyOf"),
    *("properties", "additionalProperties", "required", "maxProperties", "propertyNames", "patternProperties"),
    *("items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def test_the_schema_comes_on_one_line_for_machines(capsys: Capsys) -> None:
    done = invoke(capsys, "schema", "--json")
    told = dict(done.json)
    assert told.pop("warnings") == [] and told == json.loads(json.dumps(config_schema()))
    assert json.loads(done.err) == told


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(capsys: Capsys, shell: str) -> None:
    done = invoke(capsys, "completion", shell)
    assert done.code == 0 and "_DEPLOY_COMPLETE" in done.out and f"{shell}_complete" in done.out
    told = invoke(capsys, "completion", shell, "--json")
    assert told.json["script"].strip() == done.out.strip() and told.json["shell"] == shell


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_bash_script_is_a_script(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "complete.sh").write_text(invoke(capsys, "completion", "bash").out)
    done = subprocess.run(["bash", "-n", str(tmp_path / "complete.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("deploy in", ["inspect"]),
        ("deploy completion ", ["bash", "zsh", "fish"]),
        ("deploy run --out", ["--out", "--output-type"]),
    ],
)
def test_words_are_completed(tmp_path: Path, words: str, expected: list[str]) -> None:
    asked = {"_DEPLOY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = start(cwd=tmp_path, env=asked)
    assert sorted(line.partition(",")[2] for line in done.out.splitlines()) == sorted(expected), done.err


# Doctor


def test_doctor_tells_what_this_machine_can_do(capsys: Capsys) -> None:
    done = invoke(capsys, "doctor")
    assert done.code == 0 and done.err == ""
    for part in ("damp-deploy", "Python 3.", "cores", "engine onnxruntime", "torch", "models"):
        assert part in done.out


def test_doctor_tells_machines_the_same(capsys: Capsys) -> None:
    done = invoke(capsys, "doctor", "--json")
    findings = {finding["name"]: finding for finding in done.json["findings"]}
    assert done.code == 0 and done.json["ok"] is True
    assert_finite(done.json)
    assert findings["engine onnxruntime"]["outcome"] == findings["installation"]["outcome"] == "ok"
    assert {finding["outcome"] for finding in findings.values()} <= {"ok", "absent"}
    assert str(ROOT / "runtime") in findings["installation"]["text"]


def test_doctor_finds_another_package_called_runtime(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    done = start("doctor", "--json", cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    error = assert_json_error(done, 3)
    assert error["key"] == "installation" and str(tmp_path / "runtime") in error["message"]


def test_doctor_speaks_to_terminals_that_know_no_ticks(tmp_path: Path) -> None:
    done = start("doctor", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.code == 0 and done.out.isascii() and "engine onnxruntime" in done.out


@pytest.mark.parametrize("extra", ["strange", ""])
def test_doctor_asks_an_engine_what_brings_it(capsys: Capsys, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    module = ModuleType("strange_engine")
    vars(module).update({"available": lambda: None, **({"EXTRAS": {"strange": extra}} if extra else {})})
    monkeypatch.setitem(sys.modules, "strange_engine", module)
    monkeypatch.setitem(ENGINES, "strange", "strange_engine")
    findings = {finding["name"]: finding for finding in invoke(capsys, "doctor", "--json").json["findings"]}
    said = 'not installed: pip install "damp-deploy[strange]"' if extra else "not installed"
    assert findings["engine strange"] == {"name": "engine strange", "outcome": "absent", "text": said}


def test_doctor_tells_which_jetpack_it_stands_on(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = JetPack("39.2.0", "7.2", "7.2-b154", "10.16", running)
    monkeypatch.setattr("runtime.board_jetpack.read_jetpack", lambda: found)
    done = invoke(capsys, "doctor", "--json")
    told = {finding["name"]: finding for finding in done.json["findings"]}["jetpack"]
    assert told["outcome"] == "ok" and done.json["jetpack"] == asdict(found)
    assert told["text"] == "JetPack 7.2: L4T 39.2.0, nvidia-jetpack 7.2-b154, its TensorRT is 10.16"
    monkeypatch.setattr("runtime.board_jetpack.read_jetpack", lambda: None)
    done = invoke(capsys, "doctor", "--json")
    assert done.json["jetpack"] is None and "jetpack" not in {finding["name"] for finding in done.json["findings"]}


@pytest.mark.parametrize(
    ("found", "python", "outcome", "part"),
    [
        (JetPack("36.4.3", "6.2", None, "10.3", "3.10"), "3.10", "ok", "nvidia-jetpack is not installed"),
        (JetPack("36.4.3", "6.2", None, "10.3", "3.10"), "3.12", "absent", "for Python 3.10 alone: this is 3.12"),
        (JetPack("35.6.2", "5", None, "8.5", "3.8"), "3.10", "absent", "its TensorRT is 8.5, for Python 3.8"),
        (JetPack("99.1.0", None, None, None, None), "3.12", "ok", "not known here: L4T 99.1.0"),
    ],
)
def test_doctor_tells_what_a_jetpack_cannot_do(found: JetPack, python: str, outcome: str, part: str) -> None:
    (told,) = doctor.jetpack_findings(found, python)
    assert told.outcome == outcome and part in told.text
