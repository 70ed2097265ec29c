"""Checkpoints: what comes back, what each mistake says, and what strangers' and damaged files cannot do."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import lzma
import os
import pickle
import random
import threading
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import export.networks
from export.networks import find_checkpoint, load_checkpoint, network_of, packaged_models, save_checkpoint
from export.networks.damp import Damp, DampConfig
from runtime.errors import CheckpointError
from tests.export.checkpoints import DAMAGES, FILE_KINDS, SMALL, changed_bytes, file_bytes, network, write_options

State = dict[str, Tensor]
INDEX = "enc.0.0.layers.0.mixer.wa.attn.relative_position_index"
SOBEL = "dep.grad_branch.sobel_x.weight"
FIRST = "patch_embed.proj.weight"
LAST = "output.weight"
SLOWEST_SECONDS = 60


def changed(**changes: Any) -> DampConfig:
    return dataclasses.replace(SMALL, **changes)


CONFIGS = {
    "small": SMALL,
    "top-2": changed(top_k=2),
    "top-3 of 4": changed(experts=4, top_k=3),
    "top-2 of 3": changed(experts=3, top_k=2),
    "one expert": changed(experts=1),
    "concat": changed(gate="concat", experts=3),
    "paper6": changed(metric_set="paper6"),
    "paper6 concat": changed(metric_set="paper6", gate="concat", norm="BiasFree"),
    "bias free": changed(norm="BiasFree"),
    "31 bands": changed(bands=31, embedding=128),
    "one band": changed(bands=1),
    "heads": changed(dim=16, heads=(2, 4, 8, 16)),
    "blocks": changed(encoder_blocks=(1, 2, 1, 2), decoder_blocks=(0, 2, 1), refinement_blocks=3),
    "no encoder blocks": changed(encoder_blocks=(0, 0, 0, 1), decoder_blocks=(1, 1, 2)),
    "levels without blocks": changed(encoder_blocks=(0, 0, 0, 0), decoder_blocks=(0, 1, 0)),
    "dim 24, expansion 3": changed(dim=24, expansion=3),
    "dim 24, expansion 2.66": changed(dim=24, expansion=2.66),
    "dim 32": changed(dim=32, heads=(4, 2, 4, 8), experts=1),
    # 8 * 56 * 1.06 / (8 * 56) rounds so that the factor read back must be the next float.
    "dim 56, expansion 1.06": changed(dim=56, expansion=1.06, experts=1),
}


@pytest.fixture(scope="module")
def small() -> Damp:
    return network(SMALL)


@pytest.fixture
def state(small: Damp) -> State:
    return small.state_dict()


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def loaded(path: Path | str, top_k: int | None = None) -> Damp:
    """The module that comes back."""
    module = load_checkpoint(path, top_k).module
    assert isinstance(module, Damp)
    return module


def stored(net: Damp, path: Path, **told: Any) -> Path:
    """Write it as `.safetensors`."""
    return save_checkpoint(network_of(net), path, **told)


def refusal(path: Path | str, top_k: Any = 1) -> CheckpointError:
    """The error of loading `path`, which is one line, names the file and is the user's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path, top_k)
    error = caught.value
    assert error.exit_code == 2 and error.remedy
    assert str(error).isprintable() and len(str(error)) < 1000
    assert str(path) in str(error) or str(Path(path).with_name("config.json")) in str(error)
    return error


def saved(folder: Path, content: object, **options: Any) -> Path:
    path = folder / "net.pth"
    torch.save(content, path, **options)
    return path


# Round trips


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configurations_come_back(tmp_path: Path, config: DampConfig) -> None:
    net = network(config)
    path = saved(tmp_path, net.state_dict())

    bare = loaded(path, config.top_k)
    assert same(bare, net) and not bare.training
    widths = [config.width(level) for level in range(4)]
    assert [*map(bare.config.hidden, widths)] == [*map(config.hidden, widths)]
    assert dataclasses.replace(bare.config, expansion=config.expansion) == config

    write_options(tmp_path, config)
    told = loaded(path)
    assert same(told, net) and told.config == config

    ours = loaded(stored(net, tmp_path / "net.safetensors"))
    assert same(ours, net) and ours.config == config and not ours.training


def test_the_references_default_configuration_is_read_from_shapes(tmp_path: Path) -> None:
    config = DampConfig(dim=16, encoder_blocks=(1, 2, 2, 3), decoder_blocks=(1, 2, 2))
    assert loaded(saved(tmp_path, network(config).state_dict()), 1).config == config


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "bare": dict,
    "ordered": OrderedDict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 1e-4}},
    "params": lambda s: {"params": s},
    "both": lambda s: {"state_dict": {"params": s}},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "state_dict with module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "without index tables": lambda s: {k: v for k, v in s.items() if not k.endswith("relative_position_index")},
    "views of one storage": lambda s: s | {LAST: torch.cat([s[LAST], s[LAST]])[: len(s[LAST])]},
    "transposed in memory": lambda s: s | {LAST: s[LAST].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)},
    "indices as int32": lambda s: {k: v.int() if v.dtype == torch.int64 else v for k, v in s.items()},
    "float64": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_state_dicts_come_back_however_they_are_wrapped(
    tmp_path: Path, small: Damp, state: State, wrapping: str, legacy: bool
) -> None:
    content = WRAPPINGS[wrapping](state)
    net = loaded(saved(tmp_path, content, _use_new_zipfile_serialization=not legacy), 1)
    assert same(net, small) and net.config == SMALL


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    halves = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    net = loaded(saved(tmp_path, halves), 1)
    assert all(torch.equal(v, halves[k].to(v.dtype)) for k, v in net.state_dict().items())
    assert {v.dtype for v in net.state_dict().values()} == {torch.float32, torch.int64}


def test_a_loaded_network_computes_what_was_saved_and_owns_its_weights(tmp_path: Path, small: Damp) -> None:
    shared = torch.rand(SMALL.embedding)
    state = small.state_dict() | dict.fromkeys(("dep.feature_encoder.encoder.7.weight",), shared)
    state["dep.feature_encoder.encoder.7.bias"] = shared
    whole = load_checkpoint(saved(tmp_path, state), 1)
    net = whole.module
    assert isinstance(net, Damp) and not net.training
    frame, metrics = torch.rand(1, 3, 64, 64), torch.rand(1, 15)
    expected = network(SMALL)
    expected.load_state_dict(state)
    with torch.no_grad():
        assert all(map(torch.equal, whole(frame, metrics), expected(frame, metrics)))
        net.dep.feature_encoder.encoder[7].weight += 1
    assert torch.equal(net.dep.feature_encoder.encoder[7].bias, shared)
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["dep.grad_branch.sobel_x.weight", "dep.grad_branch.sobel_y.weight"]


def test_facts_of_a_safetensors_file_come_back(tmp_path: Path, small: Damp) -> None:
    path = stored(
        small, tmp_path / "net.safetensors", scale=4095, wavelengths=(450.5, 550.0, 650.0), about="three bands"
    )
    facts = load_checkpoint(path).facts
    assert (facts.file, facts.scale, facts.wavelengths, facts.about) == (
        path,
        4095.0,
        (450.5, 550.0, 650.0),
        "three bands",
    )
    assert len(facts.sha256) == 64
    facts = load_checkpoint(stored(small, path)).facts
    assert (facts.scale, facts.wavelengths, facts.about) == (None, (), "")
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_safetensors_file_leaves_out_tables_that_are_rebuilt(tmp_path: Path, small: Damp) -> None:
    path = stored(small, tmp_path / "net.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        keys = set(file.keys())
    left_out = small.state_dict().keys() - keys
    assert left_out and all(k.endswith(".relative_position_index") for k in left_out)
    assert path.stat().st_size < 1.1 * 4 * sum(p.numel() for p in small.parameters()) + 100_000


def test_a_networks_content_decides_not_its_name(tmp_path: Path, small: Damp) -> None:
    torch.save(small.state_dict(), tmp_path / "zip.safetensors")
    stored(small, tmp_path / "ours.pth")
    assert same(loaded(tmp_path / "zip.safetensors", 1), small)
    assert same(loaded(tmp_path / "ours.pth"), small)


def test_only_known_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear"):
        save_checkpoint(network_of(nn.Linear(2, 2)), tmp_path / "net.safetensors")
    assert not [*tmp_path.iterdir()]


def test_packaged_models_are_found_by_name_and_paths_win(
    tmp_path: Path, small: Damp, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "here").mkdir()
    packaged = stored(small, tmp_path / "models" / "tiny.safetensors.xz")
    monkeypatch.setattr(export.networks, "PACKAGED", packaged.parent)
    monkeypatch.chdir(tmp_path / "here")
    assert packaged_models() == ("tiny",)
    assert find_checkpoint("tiny") == packaged and same(loaded("tiny"), small)
    error = refusal("tinier")
    assert "tiny" in error.remedy
    assert "../models/tiny" not in packaged_models()
    refusal("../models/tiny")
    stored(network(changed(top_k=2)), Path("tiny"))
    assert find_checkpoint("tiny") == Path("tiny") and loaded("tiny").config.top_k == 2


# Top-k and options


def test_top_k_is_asked_for_never_guessed(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, state)
    error = refusal(path, None)
    assert error.key == "top_k" and "--top-k 1 to 2" in error.remedy
    write_options(tmp_path, SMALL, topk=None)
    assert refusal(path, None).key == "top_k"


@pytest.mark.parametrize("top_k", [0, -1, 3, 5, True, 1.0, "1", float("nan")])
def test_a_top_k_out_of_range_is_refused(tmp_path: Path, state: State, top_k: object) -> None:
    error = refusal(saved(tmp_path, state), top_k)
    assert error.key == "top_k" and "out of range" in str(error) and "1 to 2" in error.remedy


def test_a_given_top_k_wins(tmp_path: Path, small: Damp, state: State) -> None:
    path = saved(tmp_path, state)
    write_options(tmp_path, SMALL, topk=1)
    assert loaded(path, 2).config.top_k == 2
    write_options(tmp_path, SMALL, topk=7)
    assert loaded(path, 2).config.top_k == 2
    assert refusal(path, None).key == "top_k"
    assert loaded(stored(small, tmp_path / "net.safetensors"), 2).config.top_k == 2


CONTRADICTIONS: dict[str, tuple[object, str]] = {
    "dimention": (16, "dim"),
    "num_blocks": ([1, 1, 1, 2], "encoder_blocks"),
    "num_dec_blocks": ([1, 1, 0], "decoder_blocks"),
    "num_exp_blocks": (4, "experts"),
    "num_refinement_blocks": (2, "refinement_blocks"),
    "heads": ([4, 4, 4, 8], "heads"),
    "expansion_factor": (2.5, "expansion"),
    "LayerNorm_type": ("BiasFree", "norm"),
    "emb_dim": (128, "embedding"),
    "inp_channels": (31, "bands"),
}


@pytest.mark.parametrize("option", CONTRADICTIONS)
def test_options_that_contradict_the_weights_are_refused(tmp_path: Path, state: State, option: str) -> None:
    value, key = CONTRADICTIONS[option]
    write_options(tmp_path, SMALL, **{option: value})
    error = refusal(saved(tmp_path, state), None)
    assert error.key == key and "config.json" in error.remedy and "the options say" in error.problem


MALFORMED_OPTIONS = [
    "",
    "{",
    "[]",
    "1",
    "null",
    '"topk"',
    '{"topk": 1',
    '{"topk": "1"}',
    '{"topk": true}',
    '{"topk": [1]}',
    '{"topk": 1e999}',
    '{"topk": NaN}',
    '{"topk": 1.5}',
    '{"topk": 1, "heads": NaN}',
    '{"topk": 1, "heads": {"0": 2}}',
    '{"topk": 1, "heads": 2}',
    '{"topk": 1, "num_blocks": 1}',
    '{"topk": 1, "heads": [[2, 2, 2, 2]]}',
    '{"topk": 1, "heads": "\\n"}',
    '{"topk": 1, "expansion_factor": Infinity}',
    '{"topk": 1, "expansion_factor": NaN}',
    '{"topk": 1, "expansion_factor": 1e308}',
    '{"topk": 1, "expansion_factor": -2}',
    '{"topk": 1, "expansion_factor": "2"}',
    '{"topk": 1, "expansion_factor": true}',
    '{"topk": 1, "expansion_factor": 1' + "0" * 400 + "}",
    '{"topk": 1, "LayerNorm_type": {"a": "b\\nc"}}',
    '{"topk": 1, "heads": [' + "2," * 9999 + "2]}",
    '{"a":' * 50_000,
    "9" * 10_000,
    " " * (2 << 20),
]


@pytest.mark.parametrize("text", MALFORMED_OPTIONS, ids=range(len(MALFORMED_OPTIONS)))
def test_malformed_options_are_refused(tmp_path: Path, state: State, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refusal(saved(tmp_path, state), None)


@pytest.mark.parametrize("heads", [2, [2], [2, 2, 2, 3], [0, 0, 0, 0]])
def test_heads_of_levels_without_blocks_must_be_possible(tmp_path: Path, heads: object) -> None:
    config = CONFIGS["levels without blocks"]
    write_options(tmp_path, config, heads=heads)
    refusal(saved(tmp_path, network(config).state_dict()), None)


def test_an_expansion_is_read_and_compared_at_the_deepest_block(tmp_path: Path) -> None:
    # 85 hidden channels at width 32: the factor that they tell is another at widths 8 and 64.
    net = network(changed(encoder_blocks=(1, 1, 1, 0), expansion=2.68))
    path = saved(tmp_path, net.state_dict())
    assert same(loaded(path, 1), net)
    write_options(tmp_path, net.config)
    assert loaded(path).config == net.config


def test_options_that_are_no_text_are_refused(tmp_path: Path, state: State) -> None:
    (tmp_path / "config.json").write_bytes(b'{"topk": 1, "name": "\xff\xfe"}')
    assert refusal(saved(tmp_path, state), None).file == str(tmp_path / "config.json")


@pytest.mark.parametrize("text", ['{"topk": 1.0}', '{"topk": 1, "heads": null, "unknown": [1e999]}'])
def test_options_may_be_loose(tmp_path: Path, state: State, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert loaded(saved(tmp_path, state)).config == SMALL


# Weights that are not those of a DAMP


def without(key: str) -> Callable[[State], State]:
    return lambda s: {k: v for k, v in s.items() if k != key}


def with_(key: str, change: Callable[[Tensor], object]) -> Callable[[State], Mapping[str, object]]:
    return lambda s: s | {key: change(s[key])}


def element(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


LOGIT_SCALE = "latent.layers.0.mixer.wa.attn.logit_scale"
GATE = "dec.2.2.layers.0.DAMoE.adapter_spaspe.routing.gate.2.weight"
ENCODER = "dep.feature_encoder.encoder.0.weight"
MISTAKES: dict[str, tuple[Callable[[State], object], str, str | None]] = {
    "missing": (without(LAST), "missing key", LAST),
    "missing for the shapes": (without(FIRST), "a key is missing", FIRST),
    "missing unused": (without("dec.2.2.layers.0.DAMoE.shared.proj_spa.1.weight"), "missing key", None),
    "missing group": (lambda s: {k: v for k, v in s.items() if not k.startswith("dec.")}, "no decoder block", None),
    "missing half of a level": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("latent.layers.0.mixer.")},
        "missing key",
        None,
    ),
    "extra": (lambda s: s | {"output.bias": s[LAST]}, "extra key", "output.bias"),
    "extra layer": (lambda s: s | {"latent.layers.9.x": s[LAST]}, "missing key", None),
    "twice": (lambda s: s | {"module." + LAST: s[LAST]}, "twice", "module." + LAST),
    "shape": (with_(LAST, lambda v: v[:, :, :1]), "wrong shape, [3, 8, 3, 3] expected", LAST),
    "axes": (with_(FIRST, lambda v: v[0]), "wrong shape, 4 axes expected", FIRST),
    "no elements": (with_(FIRST, lambda v: v[:0]), "wrong shape", FIRST),
    "heads": (with_(LOGIT_SCALE, lambda v: v[:1].repeat(3, 1, 1)), "heads of level 3 must be even", None),
    "five experts": (with_(GATE, lambda v: v[:1].repeat(5, 1)), "experts must be 1 to 4", None),
    "metrics": (with_(ENCODER, lambda v: v[:, :7]), "no metric set", ENCODER),
    "NaN": (with_(LAST, element(float("nan"))), "1 of 216 weights are NaN or infinite", LAST),
    "infinite": (with_(FIRST, element(float("-inf"))), "1 of 216 weights are NaN or infinite", FIRST),
    "too large": (with_(LAST, lambda v: v.double() * 1e300), "NaN or infinite", LAST),
    "int8": (with_(LAST, lambda v: v.to(torch.int8)), "wrong type, torch.float32 expected", LAST),
    "all int8": (lambda s: {k: v.to(torch.int8) for k, v in s.items()}, "wrong type", None),
    "complex": (with_(LAST, lambda v: v.to(torch.complex64)), "not a plain array", LAST),
    "float8": (with_(LAST, lambda v: v.to(torch.float8_e4m3fn)), "not a plain array", LAST),
    "sparse": (with_(LAST, lambda v: v.to_sparse()), "not a plain array", LAST),
    "meta": (with_(LAST, lambda v: v.to("meta")), "not a plain array", LAST),
    "nested": (with_(FIRST, lambda v: torch.nested.nested_tensor([v[0, 0], v[0, 1]])), "not a plain array", FIRST),
    "index altered": (with_(INDEX, lambda v: v.flip(0)), "frozen table", INDEX),
    "index in floats": (with_(INDEX, lambda v: v.float()), "wrong type, torch.int64 expected", INDEX),
    "Sobel altered": (with_(SOBEL, lambda v: v * 1.001), "frozen table", SOBEL),
    "not a tensor": (with_(LAST, lambda v: v.tolist()), "not a tensor", LAST),
    "a key that is no text": (lambda s: {1: s[LAST], **s}, "not a tensor", "1"),
    "a list of state dicts": (lambda s: {"models": [s], "epoch": 3}, "no state dict", None),
    "empty": (lambda s: {"state_dict": {}}, "no state dict", None),
    "a list": (lambda s: [*s.values()], "no state dict", None),
    "a tensor": (lambda s: s[LAST], "no state dict", None),
    "nothing": (lambda s: None, "no state dict", None),
    "another network": (lambda s: {"conv1.weight": s[LAST]}, "no architecture that we know", "conv1.weight"),
    "control characters": (lambda s: s | {"\x1b[2J\n": s[LAST]}, "extra key", "\x1b[2J\n"),
}


@pytest.mark.filterwarnings("ignore:.*nested:UserWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, state: State, mistake: str) -> None:
    change, words, key = MISTAKES[mistake]
    error = refusal(saved(tmp_path, change(dict(state))))
    assert words in str(error)
    if key is not None:
        assert error.key == key


def test_a_small_file_cannot_ask_for_a_large_network(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in Damp(changed(dim=64)).state_dict().items() if "index" not in k}
    zero = torch.zeros(())
    path = saved(tmp_path, {k: zero.expand(shape) for k, shape in shapes.items()})
    assert path.stat().st_size < 300_000
    assert "expand beyond the file's size" in str(refusal(path))


# Files that are not checkpoints


@pytest.mark.parametrize("name", ["missing.pth", "a\0b", "line\nbreak", "x" * 5000])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint") as caught:
        load_checkpoint(name, 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        b"<!DOCTYPE html><html>not found</html>",
        b"PK\x05\x06" + bytes(18),
        b"PK\x03\x04",
        b"\x80\x02.",
        b"\x80\x02}.",
        pickle.dumps({"a": 1}, protocol=4),
        b"{" * 100_000,
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (8).to_bytes(8, "little") + b'{"a":[]}',
        bytes(1 << 20),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refusal(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in str(refusal(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_at_once(tmp_path: Path, state: State) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    found: list[CheckpointError] = []
    thread = threading.Thread(target=lambda: found.append(refusal(tmp_path / "pipe.pth")), daemon=True)
    thread.start()
    thread.join(20)
    assert found and "is not a file" in str(found[0])
    os.mkfifo(tmp_path / "config.json")
    assert loaded(saved(tmp_path, state), 1).config == SMALL


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, state)
    path.chmod(0)
    assert "cannot be read" in str(refusal(path))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with path.open("wb") as file:
        file.truncate(5 << 30)
    assert "too large" in str(refusal(path))


# Files that want to run code or eat memory


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def hostile(name: str, marker: Path) -> Runs | nn.Module:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch '{marker}'"),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "open": Runs(open, str(marker), "w"),
        "import": Runs(__import__, "antigravity"),
        "torch.save": Runs(torch.save, 1, str(marker)),
        "torch.load": Runs(torch.load, str(marker)),
        "getattr": Runs(getattr, "", "join"),
        "module": nn.Linear(2, 2),
        "pathlib": Runs(Path.touch, marker),
    }[name]


HOSTILE = ["os.system", "eval", "exec", "open", "import", "torch.save", "torch.load", "getattr", "module", "pathlib"]
HOSTILE_PLACES = [
    *((name, "alone") for name in HOSTILE),
    *((name, place) for name in ("os.system", "eval") for place in ("entry", "nested", "attribute")),
]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("name", "place"), HOSTILE_PLACES)
def test_pickles_that_would_run_code_are_refused(
    tmp_path: Path, state: State, name: str, place: str, legacy: bool
) -> None:
    marker = tmp_path / "ran"
    bad = hostile(name, marker)
    content: Any = bad
    if place == "entry":
        content = state | {LAST: bad}
    elif place == "nested":
        content = {"state_dict": {"epoch": [{"deep": (bad,)}], **state}}
    elif place == "attribute":
        content = OrderedDict(state)
        content._metadata = {"": bad}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = saved(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    error = refusal(path)
    assert "was not executed" in str(error) and error.key
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_that_would_run_code_are_refused(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "ran", tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch '{marker}'"), protocol))
    refusal(path)
    path.write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    refusal(path)
    assert not marker.exists()


class WithAttributes:
    """Pickles as an ordered dictionary whose instance hides methods of its type."""

    def __init__(self, content: State) -> None:
        self.content = content

    def __reduce__(self) -> tuple[object, ...]:
        hidden = {name: [1] for name in ("items", "keys", "get", "__getitem__")}
        return OrderedDict, (), hidden, None, iter(self.content.items())


def test_attributes_of_a_pickle_cannot_take_the_place_of_methods(tmp_path: Path, small: Damp, state: State) -> None:
    tensor = state[LAST].clone()
    tensor.numel = tensor.to = tensor.element_size = "no method"  # type: ignore[assignment]
    path = saved(tmp_path, WithAttributes(state | {LAST: tensor}))
    assert torch.load(path, weights_only=True).items == [1]
    assert same(loaded(path, 1), small)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    refusal(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_xz_of_a_checkpoint_is_that_checkpoint(tmp_path: Path, small: Damp, state: State, suffix: str) -> None:
    plain = stored(small, tmp_path / "net.safetensors") if suffix == ".safetensors" else saved(tmp_path, state)
    (there := tmp_path / f"there{suffix}.xz").write_bytes(lzma.compress(plain.read_bytes()))
    found, expected = load_checkpoint(there, 1), load_checkpoint(plain, 1)
    assert same(found.module, expected.module)
    assert found.facts.sha256 == expected.facts.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert (found.facts.file, found.facts.name) == (there, f"there{suffix}")


def test_a_packed_checkpoint_is_smaller_and_the_same(tmp_path: Path, small: Damp) -> None:
    plain, there = (stored(small, tmp_path / f"net.safetensors{suffix}") for suffix in ("", ".xz"))
    assert there.stat().st_size < 0.95 * plain.stat().st_size
    assert lzma.decompress(there.read_bytes()) == plain.read_bytes()


def test_an_xz_that_is_damaged_or_expands_is_refused(tmp_path: Path, small: Damp) -> None:
    data = stored(small, tmp_path / "net.safetensors.xz").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    bad = {
        "cut": data[:-20], "head": data[:6], "flipped": bytes(flipped), "longer": data + b"more", "twice": data * 2,
        "bomb": lzma.compress(bytes(64 << 20)),
        "nested": lzma.compress(data), "no checkpoint": lzma.compress(bytes(range(256)) * 4),
    }  # fmt: skip
    bad["hungry"] = lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 30}])
    for name, content in bad.items():
        (file := tmp_path / f"{name}.safetensors.xz").write_bytes(content)
        error = refusal(file)
        assert error.file == str(file) and error.remedy, name
    assert "expands" in str(refusal(tmp_path / "bomb.safetensors.xz"))


def test_a_compressed_archive_is_refused_unexpanded(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, state)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for member in whole.infolist():
            blank = member.filename.endswith("data/0")
            packed.writestr(member.filename, bytes(64 << 20) if blank else whole.read(member))
    assert bomb.stat().st_size < path.stat().st_size
    assert "expand beyond its size" in str(refusal(bomb))


def test_an_archive_that_lies_about_its_sizes_is_refused(tmp_path: Path, small: Damp) -> None:
    data = bytearray(file_bytes("zip", small, tmp_path))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.start_dir
    data[at + 20 : at + 28] = (2**31 - 1).to_bytes(4, "little") * 2
    path = tmp_path / "net.pth"
    path.write_bytes(data)
    assert "expand beyond its size" in str(refusal(path))


# Our own files in strange hands


def metadata(**changes: Any) -> dict[str, Any]:
    return {"architecture": "damp", "configuration": SMALL.as_dict(), "scale": None, "wavelengths": [], **changes}


METADATA = [
    None,
    "",
    "{",
    "[]",
    '"x"',
    "null",
    {"architecture": "other"},
    {"architecture": None},
    {"configuration": []},
    {"configuration": None},
    {"configuration": {}},
    {"configuration": SMALL.as_dict() | {"top_k": None}},
    {"configuration": SMALL.as_dict() | {"top_k": 3}},
    {"configuration": SMALL.as_dict() | {"top_k": True}},
    {"configuration": SMALL.as_dict() | {"dim": 16}},
    {"configuration": SMALL.as_dict() | {"expansion": 2.5}},
    {"configuration": SMALL.as_dict() | {"gate": "concat"}},
    {"configuration": SMALL.as_dict() | {"metric_set": "paper6"}},
    {"configuration": SMALL.as_dict() | {"norm": "BiasFree"}},
    {"scale": 0},
    {"scale": -1},
    {"scale": "4095"},
    {"scale": True},
    {"scale": float("inf")},
    {"scale": 10**400},
    {"wavelengths": 5},
    {"wavelengths": "450"},
    {"wavelengths": [float("nan")] * 3},
    {"wavelengths": [-1.0, 2.0, 3.0]},
    {"wavelengths": [10**400]},
]


@pytest.mark.parametrize("content", METADATA, ids=range(len(METADATA)))
def test_metadata_that_is_not_ours_is_refused(tmp_path: Path, state: State, content: str | dict[str, Any]) -> None:
    path = tmp_path / "net.safetensors"
    text = json.dumps(metadata(**content)) if isinstance(content, dict) else content
    safetensors.torch.save_file(state, path, None if text is None else {"damp_deploy": text})
    assert refusal(path, None).key


def test_metadata_as_we_write_it_is_read(tmp_path: Path, small: Damp, state: State) -> None:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file(state, path, {"damp_deploy": json.dumps(metadata())})
    assert same(loaded(path), small)


# Damage


def outcome(path: Path, kind: str) -> CheckpointError | Damp:
    """Load a damaged file: an error of one line or a network, in bounded time, without a warning."""
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return loaded(path, None if kind == "safetensors" else 1)
        except CheckpointError as error:
            assert error.exit_code == 2 and str(error).isprintable() and str(path) in str(error)
            return error
        finally:
            assert time.monotonic() - begun < SLOWEST_SECONDS


@pytest.fixture(scope="module")
def whole(small: Damp, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {kind: file_bytes(kind, small, folder) for kind in FILE_KINDS}


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, whole: dict[str, bytes], kind: str) -> None:
    data, path = whole[kind], tmp_path / "net"
    places = {*range(24), *(len(data) * i // 16 for i in range(16)), *(len(data) - i for i in (1, 2, 21, 22, 23, 100))}
    for place in sorted(places):
        path.write_bytes(data[:place])
        assert isinstance(outcome(path, kind), CheckpointError), place


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_damaged_file_is_refused_or_harmless(
    tmp_path: Path, small: Damp, whole: dict[str, bytes], kind: str, damage: str
) -> None:
    data, path = whole[kind], tmp_path / "net"
    expected = small.state_dict()
    refused = 0
    for seed in range(17):
        bad = DAMAGES[damage](kind, data, random.Random(f"{damage} {seed}"))
        path.write_bytes(bad)
        found = outcome(path, kind)
        if isinstance(found, CheckpointError):
            refused += 1
            continue
        assert found.config == SMALL, seed
        got = found.state_dict()
        altered = sum(int((got[k] != expected[k]).sum()) for k in expected)
        if kind == "zip":
            # Every member has a checksum.
            assert not altered, seed
        elif kind == "safetensors":
            assert altered <= changed_bytes(data, bad), seed
    assert refused or damage == "flips anywhere"


def test_every_packaged_model_loads_is_small_and_has_a_card() -> None:
    names = packaged_models()
    assert {"damp-nano", "damp-tiny", "damp-small", "damp-base", "damp-base-rs"} <= set(names)
    files = [find_checkpoint(name) for name in names]
    assert sum(file.stat().st_size for file in files) <= 40 * 2**20
    for name, file in zip(names, files, strict=True):
        net = load_checkpoint(name)
        card = file.with_name(f"{name}.md").read_text(encoding="utf-8")
        assert card.startswith(f"# {name}\n") and "## What it is not good for" in card
        assert f"{net.parameters / 1e6:.2f} M parameters" in card
        if net.architecture.id != "damp":
            continue
        config = loaded(name).config
        assert (config.gate, config.experts, config.top_k) == ("concat", 4, 1)
        first_edition = name in ("damp-nano", "damp-small")
        assert (config.metric_set, net.facts.fills) == (("paper6", False) if first_edition else ("log6", True))
        assert config.bands == 31
        if not name.endswith("-rs"):
            assert net.facts.scale == 65535 and net.facts.wavelengths == tuple(range(400, 701, 10))
