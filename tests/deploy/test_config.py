"""deploy.yaml: what it accepts, what a person reads when it is wrong, and that nothing else ever escapes."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from deploy.config import Config, config_schema, load_config, with_overrides
from deploy.config.sections import TargetSection
from deploy.config.yaml_lines import MAX_BYTES, MAX_NODES
from runtime.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "deploy.yaml"

FULL = """\
model:
  checkpoint: runs/damp/model.pth
  top_k: 2
  options: {top_k: 2, gain: 0.5}
input:
  bands: 4
  wavelengths: [400, 5e2, 600.5, 700.]
  scale: 4095
  frame: {lines: 128, samples: 256}
  overlap: 16
target: bench
precision: auto
targets:
  bench:
    engine: onnxruntime
    precisions: [fp32, int8]
    default_precision: int8
    threads: 4
gates:
  max_difference: 1e-3
  psnr_drop_db: null
check:
  degradations: [noise, blur]
  seed: 7
  cube: 192x320
output:
  dir: out/bundle
"""


def read(folder: Path, text: str | bytes, **names: Any) -> Config:
    path = folder / "deploy.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, **names)


def refused(folder: Path, text: str | bytes, **names: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **names)
    message = str(caught.value)
    assert message.isprintable() and message.startswith(str(folder / "deploy.yaml"))
    json.dumps(caught.value.as_json())
    return caught.value


def said(folder: Path, text: str | bytes, **names: Any) -> str:
    """The message, without the folder."""
    return str(refused(folder, text, **names)).replace(f"{folder}{os.sep}", "")


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    assert config.model.checkpoint == str(tmp_path / "runs/damp/model.pth")
    assert config.output.dir == str(tmp_path / "out/bundle")
    assert config.model.said == {"top_k": 2, "gain": 0.5}
    assert config.input.wavelengths == (400.0, 500.0, 600.5, 700.0)
    assert (config.input.frame.lines, config.input.frame.samples) == (128, 256)
    assert (config.check.cube.lines, config.check.cube.samples) == (192, 320)
    assert config.targets["bench"].default_precision == "int8"
    assert config.gates.max_difference == 1e-3
    assert config.gates.psnr_drop_db is None
    assert config.gates.sam_rise_deg == "auto"
    assert config.check.degradations == ("noise", "blur")


@pytest.mark.parametrize(
    "text", ["", "\n# nothing\n", "---\n", "null", "model:\ninput:\ngates:\ntargets:\n", "\ufeff{}"]
)
def test_nothing_said_is_all_defaults(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Config()


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().target = "gpu"


def test_shipped_file_documents_every_key_with_its_default() -> None:
    config = load_config(SHIPPED)
    data = yaml.safe_load(SHIPPED.read_text())
    for key in leaves(Config):
        value: Any = data
        for part in key.split("."):
            assert part in value, f"deploy.yaml does not show {key}"
            value = value[part]
    comments = [line for line in SHIPPED.read_text().splitlines() if line.lstrip().startswith("#")]
    for key in TargetSection.model_fields:
        assert any(f"{key}:" in line for line in comments)
    assert config.output.dir == str(SHIPPED.parent / "build/bundle")
    moved = config.model_copy(update={"output": Config().output})
    assert moved == Config()


def test_checkpoint_is_seen_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert read(tmp_path, "model: {checkpoint: model.pth}").model.checkpoint == str(tmp_path / "model.pth")
    assert read(tmp_path, "model: {checkpoint: /a/model.pth}").model.checkpoint == "/a/model.pth"
    assert read(tmp_path, "model: {checkpoint: damp-small}").model.checkpoint == "damp-small"
    (tmp_path / "damp-small").write_bytes(b"")
    assert read(tmp_path, "model: {checkpoint: damp-small}").model.checkpoint == str(tmp_path / "damp-small")
    assert load_config("../deploy.yaml").model.checkpoint == str(tmp_path / "damp-small")
    assert read(tmp_path, f"model: {{checkpoint: {'m' * 4000}}}").model.checkpoint == "m" * 4000


MESSAGES = [
    (
        "target: cpu\nprecison: fp16\n",
        "deploy.yaml, line 2, precison: is not a key known here (found 'fp16'); did you mean precision? "
        "allowed: calibration, check, gates, input, model, output, precision, stream, target, targets",
    ),
    (
        "input:\n  frame:\n    lines: 64\n    sample: 64\n",
        "deploy.yaml, line 4, input.frame.sample: is not a key known here (found 64); did you mean samples? "
        "allowed: lines, samples",
    ),
    (
        "# a comment\noverlap: 3\n",
        "deploy.yaml, line 2, overlap: is not a key known here (found 3); did you mean input.overlap? "
        "allowed here: model, input, target, precision, targets, gates, calibration, check, output, stream",
    ),
    (
        "precision: FP16\n",
        "deploy.yaml, line 1, precision: is not one of the values known here (found 'FP16'); did you mean fp16? "
        "allowed: auto, bf16, fp16, fp32, int8",
    ),
    (
        "check:\n  degradations:\n    - noise\n    - 3\n",
        "deploy.yaml, line 4, check.degradations[1]: must be text (found 3); for example `degradations: [noise, blur]`",
    ),
    (
        "model:\n  options:\n    gain: [1]\n",
        "deploy.yaml, line 3, model.options.gain: must be a text, a finite number, true or false (found [1]); "
        "see `deploy schema`",
    ),
    (
        "model:\n  options:\n    gain: .nan\n",
        "deploy.yaml, line 3, model.options.gain: must be a text, a finite number, true or false (found nan); "
        "see `deploy schema`",
    ),
    (
        "model:\n  top_k: 1\n  options: {top_k: 2}\n",
        "deploy.yaml, line 3, model.options: disagrees with model.top_k, 1 (found 'top_k: 2'); "
        "say it in one place only",
    ),
    (
        "input:\n  overlap: yes\n",
        "deploy.yaml, line 2, input.overlap: must be a whole number (found 'yes'); for example `overlap: 32`",
    ),
    (
        "input:\n  overlap: true\n",
        "deploy.yaml, line 2, input.overlap: must be a whole number (found 'true'); for example `overlap: 32`",
    ),
    (
        "input:\n  overlap: '32'\n",
        "deploy.yaml, line 2, input.overlap: must be a whole number (found '32'); write it without quotes, "
        "for example `overlap: 32`",
    ),
    (
        "input:\n  overlap: 3.5\n",
        "deploy.yaml, line 2, input.overlap: must be a whole number (found 3.5); for example `overlap: 32`",
    ),
    (
        "input:\n  frame: 64x64\n  overlap: 64\n",
        "deploy.yaml, line 3, input.overlap: must be at most half of the frame's shorter side, 64 (found 64); "
        "set input.overlap to at most 32, or a larger input.frame",
    ),
    (
        "input:\n  frame: 64 by 64\n",
        "deploy.yaml, line 2, input.frame: must be lines and samples (found '64 by 64'); for example `frame: 256x256`",
    ),
    (
        "input:\n  frame: 0x10\n",
        "deploy.yaml, line 2, input.frame: must be lines and samples (found 16); for example `frame: 256x256`",
    ),
    (
        "input:\n  frame: 64x99999\n",
        "deploy.yaml, line 2, input.frame.samples: must be at most 16384 (found 99999); for example `samples: 256`",
    ),
    (
        "input:\n  wavelengths:\n  - 400\n  - 500\n  - 450\n",
        "deploy.yaml, line 5, input.wavelengths[2]: must increase strictly, but 450 nm follows 500 nm (found '450'); "
        "sort the wavelengths and the bands with them",
    ),
    (
        "input:\n  wavelengths: [400, .nan]\n",
        "deploy.yaml, line 2, input.wavelengths[1]: must be a finite number (found nan); "
        "for example `wavelengths: [400.0, 410.0, 420.0]`",
    ),
    (
        "input:\n  bands: 3\n  wavelengths: [400, 500]\n",
        "deploy.yaml, line 2, input.bands: disagrees with 2 input.wavelengths (found 3); "
        "give one wavelength per band, or leave one of the two keys out",
    ),
    (
        "input: {scale: -.inf}\n",
        "deploy.yaml, line 1, input.scale: must be a finite number (found -inf); for example `scale: 4095`",
    ),
    (
        "input: {scale: 0}\n",
        "deploy.yaml, line 1, input.scale: must be more than 0 (found 0); for example `scale: 4095`",
    ),
    (
        "input:\n  frame: null\n  overlap: null\n",
        "deploy.yaml, line 3, input.overlap: must be a whole number (found 'null'); for example `overlap: 32`",
    ),
    (
        "gates: 3\n",
        "deploy.yaml, line 1, gates: must be a section of keys (found 3); for example `gates: {max_difference: 0.001}`",
    ),
    (
        "targets:\n  edge:\n    precisions: [fp16]\n    default_precision: fp32\n",
        "deploy.yaml, line 4, targets.edge.default_precision: is not among the target's precisions (found 'fp32'); "
        "choose one of: fp16",
    ),
    (
        "targets:\n  edge: 3\n",
        "deploy.yaml, line 2, targets.edge: must be a section of keys (found 3); "
        "for example `edge: {engine: onnxruntime}`",
    ),
    (
        "targets:\n  the edge: {}\n",
        "deploy.yaml, line 2, targets.the edge: is not a name (found 'the edge'); "
        "names hold letters, digits, `_`, `.` and `-`, at most 64",
    ),
    (
        "model:\n  checkpoint: a\n  top_k: 1\n  checkpoint: b\n",
        "deploy.yaml, line 4, model.checkpoint: is written twice, at lines 2 and 4; keep one of them",
    ),
    (
        "model: &m\n  top_k: 1\n",
        "deploy.yaml, line 1, model: anchors are not accepted (found '&m'); remove the anchor",
    ),
    (
        "model:\n  top_k: *k\n",
        "deploy.yaml, line 2, model.top_k: aliases are not accepted (found '*k'); write the value out",
    ),
    (
        "model:\n  checkpoint: !!python/object/apply:os.system ['true']\n",
        "deploy.yaml, line 2, model.checkpoint: tags are not accepted "
        "(found 'tag:yaml.org,2002:python/object/apply:os.system'); remove the tag",
    ),
    ("model:\n\ttop_k: 1\n", "deploy.yaml, line 2: a tab where YAML wants spaces; indent with spaces"),
    (
        "target: cpu\n---\ntarget: gpu\n",
        "deploy.yaml, line 2: a second document begins here; keep one document, no `---`",
    ),
    (
        "- target\n",
        "deploy.yaml, line 1: must be a mapping of sections (found ['target']); "
        "begin with a section, for example `target: cpu`",
    ),
    (
        "target: cpu\nmodel: {checkpoint: a, top_k: 1\n",
        "deploy.yaml, line 3: is not valid YAML: while parsing a flow mapping expected ',' or '}', "
        "but got '<stream end>'; check indentation, colons, quotes and brackets at this line",
    ),
    (b"target: cpu\nmodel: {checkpoint: \xff}\n", "deploy.yaml, line 2: is not UTF-8 text; save the file as UTF-8"),
    (
        "target: c\x00pu\n",
        "deploy.yaml, line 1: a character that text must not hold; save the file as plain UTF-8 text",
    ),
]


@pytest.mark.parametrize(("text", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_message(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert said(tmp_path, text) == message


def test_error_carries_its_parts(tmp_path: Path) -> None:
    error = refused(tmp_path, "input:\n  overlap: much\n")
    assert (error.line, error.key, error.value, error.exit_code) == (2, "input.overlap", "much", 2)
    assert error.remedy


def test_first_mistake_in_the_file_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path, "targt: cpu\nmodel:\n  top_k: none\n").line == 1
    assert refused(tmp_path, "check:\n  seed: -1\nmodel:\n  top_k: none\n").line == 2


def test_names_of_engines_are_checked_when_known(tmp_path: Path) -> None:
    text = "target: orinn\ntargets:\n  bench:\n    engine: onnx-runtime\n"
    assert read(tmp_path, text).target == "orinn"
    assert said(tmp_path, text, engines=("onnxruntime", "tensorrt")) == (
        "deploy.yaml, line 4, targets.bench.engine: is not a name known here (found 'onnx-runtime'); "
        "did you mean onnxruntime? allowed: onnxruntime, tensorrt"
    )


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "[" * 100_000,
        "{" * 100_000,
        "{a: " * 50_000,
        "- " * 100_000,
        "? " * 100_000,
        "".join(" " * depth + "a:\n" for depth in range(900)),
        "a: [" + "1," * (MAX_NODES + 1) + "1]",
        "k" * 5000 + ": 1",
        "? [a, b]\n: 1",
        'a: "\\UFFFFFFFF"',
        'model: {checkpoint: "\\ud800"}',
        'model: {checkpoint: "\\0"}',
        "%YAML 9" + "9" * 5000 + ".1\n---\na: 1",
        "input: {scale: " + "9" * 5000 + "}",
        "input: {scale: 1e999}",
        "input: {overlap: 0x" + "f" * 5000 + "}",
        "<<: {target: cpu}",
        "&" + "a" * 5000 + " b: c",
        "#" * (MAX_BYTES + 1),
    ],
)
def test_hostile_text_is_one_line_soon(tmp_path: Path, text: str) -> None:
    assert len(said(tmp_path, text)) < 1000


def test_billion_laughs(tmp_path: Path) -> None:
    lines = ["a0: &a0 [lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert "anchors are not accepted" in said(tmp_path, "\n".join(lines))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, problem in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=problem):
            load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / ("n" * 5000))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("deploy\0.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "deploy.yaml")
    outcome: list[ConfigError] = []

    def attempt() -> None:
        try:
            load_config(tmp_path / "deploy.yaml")
        except ConfigError as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert outcome and "regular file" in str(outcome[0])


def test_flags_beat_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, "input: {frame: {lines: 512}, overlap: 8}\nprecision: null\n")
    merged = with_overrides(config, {"target": "orin", "input.overlap": 4, "input.scale": None})
    assert (merged.target, merged.precision) == ("orin", None)
    assert (merged.input.overlap, merged.input.scale) == (4, None)
    assert (merged.input.frame.lines, merged.input.frame.samples) == (512, 256)
    assert config.input.overlap == 8
    assert with_overrides(config, {"precision": "int8"}).precision == "int8"
    assert with_overrides(config, {"input.frame": "64x96"}).input.frame.samples == 96
    assert with_overrides(Config(), {}) == Config()


def test_null_in_the_file_keeps_a_gate_off(tmp_path: Path) -> None:
    config = read(tmp_path, "gates: {psnr_drop_db: null}")
    assert with_overrides(config, {"input.overlap": 4}).gates.psnr_drop_db is None


def test_wrong_flag_is_told_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^input\.overlap: must be at least 0 \(found -1\); for example"):
        with_overrides(Config(), {"input.overlap": -1})
    with pytest.raises(ConfigError, match=r"^precision: is not one of .* did you mean fp16\?"):
        with_overrides(Config(), {"precision": "fp61"})


def test_schema_describes_every_key() -> None:
    schema = config_schema()
    json.dumps(schema, allow_nan=False)
    for name, section in {"": schema, **schema["$defs"]}.items():
        assert section["additionalProperties"] is False
        for key, described in section["properties"].items():
            assert described.get("description"), f"{name}.{key}"
    frame = schema["$defs"]["InputSection"]["properties"]["frame"]
    assert {"$ref": "#/$defs/Frame"} in frame["anyOf"]
    assert any(choice.get("type") == "string" for choice in frame["anyOf"])


WRONG = ["yes", "true", "[]", "{}", "-1", "1e3", ".nan", "-.inf", "'1'", "null", "2024-01-01", "1:30", "0x10", "[[1]]",
         "{a: {b: c}}", '"\\0"', "é", "9" * 40, "1_000", "0b1", "010", "~", "=", "<<"]  # fmt: skip


def damaged(source: bytes, seed: int) -> bytes:
    """`source` with one to three seeded mistakes."""
    draw = random.Random(seed)
    text = source
    for _ in range(draw.randint(1, 3)):
        lines = text.split(b"\n")
        at = draw.randrange(len(lines))
        kind = draw.randrange(9)
        if kind == 0 and text:
            flipped = bytearray(text)
            for _ in range(draw.randint(1, 8)):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            text = bytes(flipped)
        elif kind == 1:
            text = text[: draw.randrange(len(text) + 1)]
        elif kind == 2:
            key, colon, _ = lines[at].partition(b":")
            lines[at] = key + colon + b" " + draw.choice(WRONG).encode()
        elif kind == 3:
            lines[at] = lines[at].replace(b":", draw.choice([b"s:", b"", b"::", b": :", b" x:"]), 1)
        elif kind == 4:
            lines.insert(at, draw.choice([b"a: *b", b"a: &b c", b"*a : b", b"<<: *a", b"a: &a [*a]"]))
        elif kind == 5:
            lines.insert(
                at, draw.choice([b"a: !!python/name:os.system", b"!!set {a}", b"a: !x y", b"--- !t", b"%TAG ! x"])
            )
        elif kind == 6:
            lines.insert(at, lines[draw.randrange(len(lines))])
        elif kind == 7:
            lines.insert(
                at, draw.choice([b"\t", b"---", b"...", b"{", b"]", b"'", b'"', b"|", b"? ", b"- ", b"\xff\xfe"])
            )
        else:
            lines[at] = b" " * draw.randrange(4) + lines[at]
        if kind > 1:
            text = b"\n".join(lines)
    return text


@pytest.mark.parametrize("source", [FULL.encode(), SHIPPED.read_bytes()], ids=["full", "shipped"])
def test_damaged_files_are_refused_in_one_line_or_valid(tmp_path: Path, source: bytes) -> None:
    valid = sum(survives(tmp_path, damaged(source, seed)) for seed in range(100))
    assert 0 < valid < 100


def survives(folder: Path, text: bytes) -> bool:
    """Whether `text` is a valid configuration; if not, it must be refused in one line."""
    try:
        config = read(folder, text)
    except ConfigError as error:
        assert str(error).isprintable() and len(str(error)) < 1500, text
        assert error.remedy, text
        json.dumps(error.as_json(), allow_nan=False)
        return False
    assert Config.model_validate(config.model_dump()) == config, text
    return True
