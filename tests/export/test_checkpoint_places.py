"""Weights are found wherever a trainer or a wrapper put them, and of several sets none is taken in silence."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from export.networks import Network, load_checkpoint
from export.networks.damp import Damp
from runtime.errors import CheckpointError
from tests.export.checkpoints import SMALL, network

State = dict[str, Tensor]
LAST = "output.weight"
FROZEN = ("sobel_x.weight", "sobel_y.weight", "relative_position_index")


@pytest.fixture(scope="module")
def small() -> Damp:
    return network(SMALL)


@pytest.fixture
def state(small: Damp) -> State:
    return small.state_dict()


@pytest.fixture
def averaged(state: State) -> State:
    return scaled(state, 0.5)


def scaled(state: State, factor: float) -> State:
    """Other weights of the same network."""
    return {k: v if k.endswith(FROZEN) else v * factor for k, v in state.items()}


def behind(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def loaded(folder: Path, content: object, **options: Any) -> Network:
    torch.save(content, folder / "net.pth")
    return load_checkpoint(folder / "net.pth", 1, **options)


def refusal(folder: Path, content: object, **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        loaded(folder, content, **options)
    error = caught.value
    assert error.exit_code == 2 and error.remedy and str(error).isprintable() and len(str(error)) < 1000
    return error


def holds(net: Network, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in net.module.state_dict().items())


PREFIXES = [
    "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "model.", "net.", "netG.",
    "generator.module.", "network.", "denoiser.", "model.net.0.", "a.b.c.d.e.f.", "the model.", "dec.", "dep.", "1.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_whatever_all_keys_begin_with(tmp_path: Path, state: State, prefix: str) -> None:
    net = loaded(tmp_path, behind(prefix, state))
    assert holds(net, state) and net.module.config == SMALL
    assert net.facts.weights == prefix[:-1] and net.facts.place == f"weights under {prefix[:-1]}"
    assert not net.facts.doubts and net.options == {"top_k": 1}


PLACES = [
    ["state_dict"], ["model_state_dict"], ["params"], ["params_ema"], ["model"], ["net"], ["ema"], ["ema_state_dict"],
    ["weights"], ["module"], ["state_dict", "params"], ["model", "state_dict"], ["checkpoint", "model", "weights"],
    ["best model"],
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_whatever_dictionaries_they_lie_in(tmp_path: Path, state: State, place: list[str], prefix: str) -> None:
    content: dict[str, Any] = behind(prefix, state)
    for key in reversed(place):
        content = {"epoch": 7, key: content, "loss": [0.5], "best": {"psnr": 30.0, "at": None}}
    net = loaded(tmp_path, content)
    assert holds(net, state) and net.facts.weights == f"{'.'.join(place)}.{prefix}"[:-1]
    assert not net.facts.beside and not net.facts.doubts


def test_a_checkpoint_of_a_trainer_with_its_optimiser(tmp_path: Path, state: State, small: Damp) -> None:
    optimiser = torch.optim.Adam(small.parameters())
    small(torch.rand(1, 3, 64, 64), torch.rand(1, 15))[0].mean().backward()
    optimiser.step()
    net = loaded(
        tmp_path,
        {
            "epoch": 3,
            "global_step": 100,
            "pytorch-lightning_version": "2.1.0",
            "state_dict": {**behind("net.", state), "loss.vgg.0.weight": torch.ones(3), "psnr.sum": torch.ones(())},
            "optimizer_states": [optimiser.state_dict()],
            "optimizer": optimiser.state_dict(),
            "lr_schedulers": [{"last_epoch": 3}],
            "hyper_parameters": {"lr": 1e-4, "topk": 1},
        },
    )
    assert holds(net, state)
    assert net.facts.place == (
        "weights under state_dict.net; not used: state_dict.loss (1 tensor), state_dict.psnr (1 tensor)"
    )


def test_data_of_other_libraries_beside_weights_is_passed_over(tmp_path: Path, state: State) -> None:
    beside = {
        "args": argparse.Namespace(lr=1e-4, out=Path("here")), "best": np.float64(31.5), "curve": np.arange(3.0),
        "when": datetime.datetime(2024, 1, 2), "rng": np.random.RandomState(0).get_state(),
    }  # fmt: skip
    for legacy in (False, True):
        torch.save({"model": state, **beside}, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
        assert holds(load_checkpoint(tmp_path / "net.pth", 1), state)
    error = refusal(tmp_path, {"model": state | {LAST: state[LAST].numpy()}})
    assert error.key == LAST and "not a tensor (found 'Foreign')" in str(error)
    assert "no state dict" in str(refusal(tmp_path, argparse.Namespace(model=state)))


def test_wrappers_of_parts_of_a_network(tmp_path: Path, state: State) -> None:
    wrapped = {
        key.replace("dec.2.2.layers.0.", "dec.2.2.layers.0._orig_mod.")
        .replace("dep.", "dep._fsdp_wrapped_module._checkpoint_wrapped_module.")
        .replace("latent.", "latent.module."): value
        for key, value in state.items()
    }
    assert wrapped.keys() != state.keys()
    for prefix in ("", "net.", "module."):
        assert holds(loaded(tmp_path, behind(prefix, wrapped)), state)
    half = {(f"module.{key}" if key > "enc" else key): value for key, value in state.items()}
    assert holds(loaded(tmp_path, half), state)


def test_an_averaged_model_of_pytorch(tmp_path: Path, small: Damp, state: State) -> None:
    whole = torch.optim.swa_utils.AveragedModel(small).state_dict()
    net = loaded(tmp_path, whole)
    assert holds(net, state) and net.facts.beside == ("n_averaged (1 tensor)",)


PAIRS: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "params": (lambda raw, ema: {"params": raw, "params_ema": ema}, "params_ema", "params"),
    "state_dict": (lambda raw, ema: {"state_dict_ema": ema, "state_dict": raw}, "state_dict_ema", "state_dict"),
    "ema_state_dict": (lambda raw, ema: {"model": raw, "ema_state_dict": ema}, "ema_state_dict", "model"),
    "nested": (lambda raw, ema: {"g": {"raw": raw, "EMA": ema}, "epoch": 1}, "g.EMA", "g.raw"),
    "one dict": (lambda raw, ema: {**behind("model.", raw), **behind("ema.", ema)}, "ema", "model"),
    "in state_dict": (
        lambda raw, ema: {"state_dict": {**behind("net.", raw), **behind("net_ema.module.", ema)}},
        "state_dict.net_ema.module",
        "state_dict.net",
    ),
    "within": (lambda raw, ema: {**raw, **behind("ema.", ema)}, "ema", "."),
    "beside bare": (lambda raw, ema: {**raw, "ema": ema}, "ema", "."),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_of_raw_and_averaged_weights_the_averaged_are_taken_and_it_is_said(
    tmp_path: Path, state: State, averaged: State, pair: str
) -> None:
    make, ema, raw = PAIRS[pair]
    content = make(state, averaged)
    net = loaded(tmp_path, content)
    assert holds(net, averaged)
    (doubt,) = net.facts.doubts
    assert f"{ema} is taken" in doubt and f"not {raw}" in doubt and f"--option weights={ema}, or weights={raw}" in doubt
    assert net.facts.place == f"weights under {ema}; not used: {raw}"
    for wanted, wished in ((ema, averaged), (raw, state)):
        net = loaded(tmp_path, content, weights=wanted)
        assert holds(net, wished) and not net.facts.doubts and net.facts.weights == wanted
        # With these it is loaded again.
        assert net.options == {"top_k": 1, "weights": wanted}


def test_equals_of_which_none_is_an_average_are_a_question(tmp_path: Path, state: State, averaged: State) -> None:
    for content in (
        {"model": state, "best": averaged},
        {**behind("teacher.", state), **behind("student.", averaged)},
        {"raw": state, "ema_1": averaged, "ema": scaled(state, 2)},
        {"ema": averaged, "model_ema": state},
    ):
        error = refusal(tmp_path, content)
        names = sorted({key.split(".")[0] for key in content})
        assert (
            f"the weights of several networks: {', '.join(names)}" in str(error) and "--option weights=" in error.remedy
        )
        assert all(loaded(tmp_path, content, weights=f"{name}.").facts.weights == name for name in names)


def test_a_question_names_a_few_of_many(tmp_path: Path, state: State) -> None:
    encoder = {key: value for key, value in state.items() if key.startswith("dep.")}
    error = refusal(tmp_path, {f"run {n:04}": encoder for n in range(2)} | behind("x" * 400 + ".", encoder))
    assert "run 0000" in str(error)
    many = {f"run{n:04}.{key}": value for key, value in encoder.items() for n in range(200)}
    assert re.search(r"run0000, run0001, .* and \d+ more", str(refusal(tmp_path, many)))


@pytest.mark.parametrize("wanted", ["generator", "param", "params.net", "", ".", 7])
def test_weights_that_are_not_there_are_refused_with_those_that_are(
    tmp_path: Path, state: State, averaged: State, wanted: Any
) -> None:
    error = refusal(tmp_path, {"params": state, "params_ema": averaged}, weights=wanted)
    assert error.key == "weights" and error.remedy == "there are: params, params_ema"


def test_the_beginning_of_a_prefix_is_enough_to_choose(tmp_path: Path, state: State, averaged: State) -> None:
    content = {"a": behind("module.", state), "b": {"module.net": averaged, "deep": {"ema": averaged}}}
    assert loaded(tmp_path, content, weights="a").facts.weights == "a.module"


def test_what_is_missing_names_where_and_what_else_is_there(tmp_path: Path, state: State) -> None:
    shadow = {k: v for k, v in state.items() if not k.endswith(FROZEN)}
    error = refusal(tmp_path, {"params": state, "params_ema": shadow})
    assert "missing key" in error.problem and "weights under params_ema; not used: params" in error.problem
    assert error.remedy.endswith("or take others of the file: --option weights=params")
    assert holds(loaded(tmp_path, {"params": state, "params_ema": shadow}, weights="params"), state)
    apart = {"encoder": {k: v for k, v in state.items() if k < "dec"}}
    apart["decoder"] = {k: v for k, v in state.items() if k not in apart["encoder"] and not k.startswith("dep.")}
    apart["prompts"] = {k: v for k, v in state.items() if k.startswith("dep.")}
    assert "decoder" in str(refusal(tmp_path, apart))
    nothing = refusal(tmp_path, {"net": state | {LAST: state[LAST] * torch.nan}, "critic": {"w": torch.ones(1)}})
    assert "NaN" in str(nothing) and "weights under net; not used: critic (1 tensor)" in str(nothing)
    assert "not used" not in str(refusal(tmp_path, {"net": without(state, LAST)}))


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


def test_a_prefix_that_is_not_understood_is_named(tmp_path: Path, state: State) -> None:
    error = refusal(tmp_path, {"model": {f"net_{key}": value for key, value in state.items()}})
    assert "no architecture" in str(error) and "all begin with model.net_" in str(error)
    deep = "a.b.c.d.e.f.g.h.i."
    assert f"all begin with {deep}" in str(refusal(tmp_path, behind(deep, state)))
    assert "begin with" not in str(refusal(tmp_path, {"one.weight": torch.ones(1)}))
    assert "begin with" not in str(refusal(tmp_path, {"one.weight": torch.ones(1), "two.weight": torch.ones(1)}))


def test_a_key_twice_or_no_tensor_is_refused_behind_a_prefix_too(tmp_path: Path, state: State) -> None:
    twice = behind("net.", state) | {"net.module." + LAST: state[LAST]}
    assert refusal(tmp_path, twice).key == "module." + LAST
    nested = {"net": state, "net." + LAST: state[LAST]}
    assert "twice" in str(refusal(tmp_path, nested))
    assert refusal(tmp_path, {"net": state | {LAST: [1.0]}}).key == LAST
    # What is not among the weights may be of any kind.
    assert holds(loaded(tmp_path, {"net": state, "other": state[LAST].to_sparse(), 1: {2: 3}, (1, 2): 10**100}), state)


def test_one_dictionary_under_two_names_is_one_set(tmp_path: Path, state: State) -> None:
    net = loaded(tmp_path, {"model": state, "best": state})
    assert holds(net, state) and not net.facts.doubts and net.facts.weights == "model"


def test_dictionaries_within_themselves_and_very_deep_ones_come_to_an_end(tmp_path: Path, state: State) -> None:
    round_: dict[str, Any] = {f"again{n}": {} for n in range(50)}
    for inner in round_.values():
        inner.update({f"back{n}": round_ for n in range(50)})
    round_["net"] = state
    assert holds(loaded(tmp_path, round_), state)
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"down": deep}
    assert holds(loaded(tmp_path, {"net": state, "deep": deep}), state)
    assert "no state dict" in str(refusal(tmp_path, {"a": {"b": {"c": {"d": {"e": state}}}}}))
    assert "no state dict" in str(refusal(tmp_path, {"x" * 300: state}))


def test_too_many_entries_are_refused(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.networks.reading.MOST_ENTRIES", len(state))
    assert holds(loaded(tmp_path, state), state)
    assert "more than" in str(refusal(tmp_path, {"net": state, "epoch": 1}))


def test_a_part_that_looks_like_a_whole_network_is_a_part(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture that is known by one key alone may find it within its own parts as well."""
    from export.networks import ARCHITECTURES

    loose = dataclasses.replace(ARCHITECTURES["damp"], recognises=lambda keys: any(".DAMoE." in key for key in keys))
    monkeypatch.setitem(ARCHITECTURES, "damp", loose)
    assert holds(loaded(tmp_path, state), state)
