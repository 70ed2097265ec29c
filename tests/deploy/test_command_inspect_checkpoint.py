"""`deploy inspect CHECKPOINT`: what takes it, or what is in it where nothing does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from export.networks import load_checkpoint
from tests.contracts.command import assert_failed, assert_finite, assert_json_error, invoke
from tests.export.dfpir import SMALL, network

Capsys = pytest.CaptureFixture[str]


def test_people_see_what_a_checkpoint_is(capsys: Capsys, tiny_checkpoint: Path) -> None:
    done = invoke(capsys, "inspect", tiny_checkpoint)
    assert done.code == 0 and done.err == ""
    for part in ("damp: paper6", "0.1", "top_k 1", "31 bands x 64 lines", "metrics paper6, [1, 6]", "routing, [2, 4]",
                 "400 to 700 nm", "65535", "seeded weights"):  # fmt: skip
        assert part in done.out, part


def test_machines_get_all_of_it_of_a_packaged_model_too(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = invoke(capsys, "inspect", "damp-nano", "--json").json
    net = load_checkpoint("damp-nano")
    assert told["architecture"] == "damp" and told["options"] == net.options and told["parameters"] == net.parameters
    assert told["signature"]["measured"]["bands"] == 31 and len(told["wavelengths"]) == 31
    assert told["sha256"] == net.facts.sha256 and told["scale"] == net.facts.scale
    assert sum(group["count"] for group in told["keys"].values()) >= len(list(net.module.parameters()))
    assert_finite(told)


def test_a_network_without_its_prompt_is_shown(capsys: Capsys, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": network(SMALL).state_dict()}, tmp_path / "best.pth.tar")
    done = invoke(capsys, "inspect", tmp_path / "best.pth.tar")
    assert done.code == 0 and done.err == ""
    for part in ("dfpir: 8 channels, prompts: none", "weights under state_dict", "constant prompts/perturbation.npy"):
        assert part in done.out, part


def test_weights_that_nothing_takes_are_shown_by_their_keys(capsys: Capsys, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    state = {f"body.{n}.conv.weight": torch.zeros(4, 3, n + 1) for n in range(2)}
    torch.save({**state, "body.0.conv.bias": torch.zeros(4), "head.weight": torch.zeros(1)}, file)
    done = invoke(capsys, "inspect", file)
    assert_failed(done, 2, "no architecture", "known architectures: damp")
    for part in ("4 tensors", "body.0", "body.1", "head.weight", "[4, 3, 2]"):
        assert part in done.out
    done = invoke(capsys, "inspect", file, "--json")
    assert assert_json_error(done, 2)["kind"] == "CheckpointError"
    assert done.json["keys"]["body.0"] == {"count": 2, "shapes": [[4], [4, 3, 1]]}


def test_a_missing_key_is_named_beside_the_keys(capsys: Capsys, tiny_checkpoint: Path, tmp_path: Path) -> None:
    state = dict(load_checkpoint(tiny_checkpoint).module.state_dict())
    gone = next(key for key in state if "DAMoE" in key)
    del state[gone]
    torch.save(state, tmp_path / "damaged.pth")
    error = assert_json_error(done := invoke(capsys, "inspect", tmp_path / "damaged.pth", "--json"), 2)
    assert error["key"] and done.json["keys"]


def test_what_cannot_be_read_has_no_keys(capsys: Capsys, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name, words in (("broken.safetensors", "damaged"), ("missing.pth", "no such checkpoint")):
        assert_failed(invoke(capsys, "inspect", tmp_path / name), 2, words)


def test_where_in_a_file_the_weights_are_is_shown_with_what_is_not_used(
    capsys: Capsys, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    net = load_checkpoint(tiny_checkpoint)
    options = {"topk": 1, "heads": None}
    (tmp_path / "config.json").write_text(json.dumps(options))
    raw = {f"_orig_mod.{key}": value for key, value in net.state_dict().items()}
    torch.save({"params": raw, "params_ema": raw, "critic": {"w": torch.ones(1)}}, tmp_path / "one.pth")
    torch.save({"params": raw, "params_ema": dict(raw), "critic": {"w": torch.ones(1)}}, tmp_path / "both.pth")
    done = invoke(capsys, "inspect", tmp_path / "one.pth")
    assert done.code == 0 and done.err == ""
    assert "weights under params._orig_mod; not used: critic (1 tensor)" in done.out
    done = invoke(capsys, "inspect", tmp_path / "both.pth")
    assert done.code == 0 and "params_ema._orig_mod is taken" in done.err
    told = invoke(capsys, "inspect", tmp_path / "both.pth", "--json").json
    assert told["weights"] == told["options"]["weights"] == "params_ema._orig_mod"
    assert told["not_used"] == ["params._orig_mod", "critic (1 tensor)"]
    assert told["keys"] == invoke(capsys, "inspect", tiny_checkpoint, "--json").json["keys"] | told["keys"]
    assert not any("orig_mod" in key for key in told["keys"])


def test_it_is_shown_of_weights_that_need_more_than_the_file_says_too(
    capsys: Capsys, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    state = load_checkpoint(tiny_checkpoint).state_dict()
    torch.save({"model_state_dict": state, "critic": {"w": torch.ones(1)}}, tmp_path / "net.pth")
    done = invoke(capsys, "inspect", tmp_path / "net.pth")
    assert_failed(done, 2, "top-k is not in the weights")
    assert (
        "weights under model_state_dict; not used: critic (1 tensor)" in done.out and "dep.feature_encoder" in done.out
    )
    told = invoke(capsys, "inspect", tmp_path / "net.pth", "--json").json
    assert told["weights"] == "model_state_dict" and told["not_used"] == ["critic (1 tensor)"]
