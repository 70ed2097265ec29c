"""Text codes of DFPIR: from files, checkpoints and a local CLIP; what is refused, and what is told of them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from export.networks import Network, load_checkpoint, network_of, save_checkpoint
from export.networks.dfpir import Dfpir, conditions
from export.networks.dfpir.clip import PLACES, TextTower, Tokenizer
from export.networks.dfpir.prompts import LARGEST_CODE, SENTENCES, read_code
from export.networks.reading import write_safetensors
from runtime.errors import CheckpointError
from tests.export.dfpir import PROMPTS, SMALL, TEXT, code, network

MERGES = """
i n|a n|a r|s t|o r|o n</w>|a t|i t|i n</w>|t o</w>|a t</w>|o f</w>|e s</w>|l o|a n</w>|l i|t i|r a|h a|d e
s i|a l</w>|n o|g h|w it|at i|wit h</w>|i s|v i|h o|m o|a u|gh t</w>|ati on</w>|l u|an d|ti on</w>|ar d</w>
g ra|p ho|s si|lo w|n or|pho to</w>|l in|b lu|z e</w>|li ght</w>|is e</w>|st and|z y</w>|c at</w>|ra in</w>
lin es</w>|m al</w>|stand ard</w>|g au|nor mal</w>|mo tion</w>|no ise</w>|de vi|d ation</w>|ha ze</w>
blu r</w>|de gra|ssi an</w>|ha zy</w>|degra dation</w>
"""
"""Of CLIP's merges those that the sentences need, in their order, and of its vocabulary their words."""
WORDS = {
    "gau": 5919, "ssian</w>": 31218, "noise</w>": 9307, "with</w>": 593, "a</w>": 320, "standard</w>": 5807,
    "devi": 12926, "ation</w>": 656, "of</w>": 539, "1</w>": 272, "5</w>": 276, "2</w>": 273, "0</w>": 271,
    "rain</w>": 2443, "degradation</w>": 44468, "lines</w>": 3418, "hazy</w>": 32655, "normal</w>": 5967,
    "haze</w>": 22785, "blur</w>": 27976, "motion</w>": 7860, "low": 1049, "light</w>": 1395, "photo</w>": 1125,
    "cat</w>": 2368,
}  # fmt: skip
START, END = 49406, 49407
IDS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    SENTENCES["denoise15"]: [5919, 31218, 9307, 593, 320, 5807, 12926, 656, 539, 272, 276],
    SENTENCES["denoise25"]: [5919, 31218, 9307, 593, 320, 5807, 12926, 656, 539, 273, 276],
    SENTENCES["denoise50"]: [5919, 31218, 9307, 593, 320, 5807, 12926, 656, 539, 276, 271],
    SENTENCES["derain"]: [2443, 44468, 593, 2443, 3418],
    SENTENCES["dehaze"]: [32655, 44468, 593, 5967, 22785],
    SENTENCES["deblur"]: [27976, 44468, 593, 7860, 27976],
    SENTENCES["lowlight"]: [1049, 1395, 44468],
    "Noise": [9307], "Rain": [2443], "Haze": [22785],
}  # fmt: skip
"""What OpenAI's own tokenizer makes of them, without start and end."""


def tokenizer_json(pairs: bool = False) -> dict[str, Any]:
    split = [merge for line in MERGES.split("\n") if line for merge in line.split("|")]
    merges: list[Any] = [merge.split(" ") for merge in split] if pairs else split
    special = [{"content": "<|startoftext|>", "id": START}, {"content": "<|endoftext|>", "id": END}]
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": WORDS, "merges": merges}
    return {"added_tokens": special, "model": model}


def clip_folder(folder: Path, width: int = 32, layers: int = 2, heads: int = 4) -> Path:
    """A small CLIP with CLIP's own vocabulary and random weights, of which the picture's half is left out."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (END + 1, width),
        "text_model.embeddings.position_embedding.weight": (PLACES, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
        "text_projection.weight": (TEXT, width),
    }
    for i in range(layers):
        at = f"text_model.encoder.layers.{i}"
        parts = {f"self_attn.{n}_proj": (width, width) for n in ("q", "k", "v", "out")}
        parts |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for part, shape in parts.items():
            shapes |= {f"{at}.{part}.weight": shape, f"{at}.{part}.bias": shape[:1]}
        for part in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{at}.{part}.weight": (width,), f"{at}.{part}.bias": (width,)}
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        key: torch.from_numpy((rng.standard_normal(s) * 0.3 + (key.endswith("norm1.weight"))).astype(np.float32))
        for key, s in shapes.items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (folder / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": heads, "eos_token_id": 2}}))
    return folder


def restated(folder: Path, ids: list[int], heads: int = 4) -> NDArray[np.float64]:
    """CLIP's text encoder in NumPy, padded to all of its places."""
    w = {k: v.numpy().astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    x = w["text_model.embeddings.token_embedding.weight"][ids + [0] * (PLACES - len(ids))]
    x = x + w["text_model.embeddings.position_embedding.weight"]

    def norm(x: NDArray[np.float64], at: str) -> NDArray[np.float64]:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{at}.weight"] + w[f"{at}.bias"]

    def linear(x: NDArray[np.float64], at: str) -> NDArray[np.float64]:
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    layers = sum(key.endswith("layer_norm1.bias") for key in w)
    for i in range(layers):
        at = f"text_model.encoder.layers.{i}"
        y = norm(x, f"{at}.layer_norm1")
        q, k, v = (np.split(linear(y, f"{at}.self_attn.{n}_proj"), heads, axis=1) for n in "qkv")
        made = []
        for h in range(heads):
            s = q[h] @ k[h].T / np.sqrt(q[h].shape[1])
            s[np.triu_indices(PLACES, 1)] = -np.inf
            p = np.exp(s - s.max(1, keepdims=True))
            made.append(p / p.sum(1, keepdims=True) @ v[h])
        x = x + linear(np.concatenate(made, 1), f"{at}.self_attn.out_proj")
        y = linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
        x = x + linear(y / (1 + np.exp(-1.702 * y)), f"{at}.mlp.fc2")
    end = norm(x, "text_model.final_layer_norm")[len(ids) - 1]
    return end @ w["text_projection.weight"].T


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Weights that bring no prompts, as the reference writes them."""
    torch.save({"state_dict": network(SMALL).state_dict()}, tmp_path / "net.pth.tar")
    return tmp_path / "net.pth.tar"


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A folder of codes: noise, rain, and one of the user's own."""
    folder = tmp_path / "codes"
    folder.mkdir()
    for name in (*PROMPTS, "smear"):
        np.save(folder / f"{name}.npy", code(name))
    return folder


def refusal(file: Path, **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(file, **options)
    assert caught.value.exit_code == 2
    return caught.value


def loaded(file: Path, **options: Any) -> Dfpir:
    module = load_checkpoint(file, **options).module
    assert isinstance(module, Dfpir)
    return module


# Without a prompt


def test_without_a_prompt_a_network_loads_and_has_no_constants(bare: Path) -> None:
    net = load_checkpoint(bare)
    assert net.smallest.constants[0].name == "perturbation" and net.options == {}
    assert "prompts: none" in net.architecture.about(net.module)
    with pytest.raises(CheckpointError, match="no prompt was given") as caught:
        _ = net.constants
    remedy = caught.value.remedy
    assert caught.value.exit_code == 2 and caught.value.key == "prompt"
    assert all(name in remedy for name in SENTENCES)
    assert all(word in remedy for word in ("text_code=NAME.npy", "encode_text", "clip=FOLDER", "model.safetensors"))
    assert conditions(net.module) == {}


@pytest.mark.parametrize("name", ["derain", "noise"])
def test_a_prompt_without_a_code_is_refused(bare: Path, name: str) -> None:
    error = refusal(bare, prompt=name)
    assert (error.key, error.value, error.problem) == ("prompt", name, "there is no code for this prompt")
    assert "clip-vit-base-patch32" in error.remedy


def test_an_unknown_name_needs_a_code(bare: Path, clip: Path) -> None:
    for options in ({}, {"clip": str(clip)}):
        error = refusal(bare, prompt="smear", **options)
        assert (error.key, error.value) == ("prompt", "smear") and "no sentence that we know" in error.problem


@pytest.mark.parametrize("said", ["", "noise,", "noise,noise", "Noise", "../rain", "rain haze", 5, "a" * 65])
def test_a_name_is_small_letters(bare: Path, codes: Path, said: object) -> None:
    error = refusal(bare, prompt=said, text_code=str(codes))
    assert error.key == "prompt" and "small letters" in error.remedy


@pytest.mark.parametrize("option", ["text_code", "clip"])
def test_a_code_without_a_prompts_name_is_refused(bare: Path, codes: Path, option: str) -> None:
    error = refusal(bare, **{option: str(codes)})
    assert error.key == "prompt" and "not said which prompt" in error.problem


# Codes from files


def test_a_saved_code_makes_the_constant(bare: Path, codes: Path) -> None:
    net = load_checkpoint(bare, prompt="rain", text_code=str(codes / "smear.npy"))
    expected = net.module.perturbation(torch.from_numpy(code("smear"))[None]).detach().numpy()
    np.testing.assert_array_equal(net.constants["perturbation"], expected)
    assert net.options == {"prompt": "rain", "text_code": str(codes / "smear.npy")}
    assert net.configuration["prompts"] == [{"name": "rain", "sentence": "Rain"}]


def test_a_code_that_is_none_is_refused(bare: Path, codes: Path) -> None:
    np.save(codes / "zero.npy", np.zeros(TEXT, np.float32))
    for file, words in (("noise", "is the code of another prompt, noise"), ("zero", "all numbers .* are equal")):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_checkpoint(bare, prompt="rain", text_code=str(codes / f"{file}.npy"))
        assert caught.value.key == "text_code"
    np.save(codes / "rain.npy", code("noise"))
    with pytest.raises(CheckpointError, match="noise and rain have the same code"):
        load_checkpoint(bare, prompt="noise,rain", text_code=str(codes))


@pytest.mark.parametrize(
    "change", [lambda a: a, lambda a: a[None], lambda a: a.astype(np.float64), lambda a: a.astype(">f4")]
)
def test_a_code_is_float32_or_float64_of_one_or_two_axes(tmp_path: Path, change: Any) -> None:
    np.save(tmp_path / "code.npy", change(code("rain")))
    found = read_code(tmp_path / "code.npy", TEXT)
    assert found.dtype == np.float32 and found.dtype.isnative
    np.testing.assert_array_equal(found, code("rain"))


def test_several_prompts_come_from_a_folder_or_a_list(bare: Path, codes: Path) -> None:
    listed = ",".join(str(codes / f"{name}.npy") for name in ("smear", "noise"))
    for said in (str(codes), listed):
        net = loaded(bare, prompt="noise, smear", text_code=said)
        assert {name: c.sentence for name, c in net.prompts.items()} == {"noise": "Noise", "smear": ""}
        assert [*net.prompts] == ["noise", "smear"]
        for name, told in net.prompts.items():
            np.testing.assert_array_equal(told.values, code(name))
    error = refusal(bare, prompt="noise,haze", text_code=str(codes))
    assert (error.key, error.value) == ("prompt", "haze")
    error = refusal(bare, prompt="noise,haze", text_code=listed)
    assert (error.key, error.value) == ("text_code", "smear") and "haze.npy" in error.remedy


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    return stream.getvalue()


def saved(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, code=code("rain"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (saved(np.zeros(TEXT + 1, np.float32)), "float32 [17]"),
        (saved(np.zeros((2, TEXT), np.float32)), "float32 [2, 16]"),
        (saved(np.zeros(TEXT, np.float16)), "float16 [16]"),
        (saved(np.zeros(TEXT, np.int32)), "int32 [16]"),
        (saved(np.zeros(TEXT, np.complex64)), "complex64 [16]"),
        (saved(code("rain"))[:-1], "buffer size"),
        (saved(code("rain")) + b"more", "17 numbers"),
        (saved(code("rain")).replace(b"<f4", b"<f8"), "8 numbers"),
        (pickled(), "pickled objects, which are not read"),
        (zipped(), "magic string"),
        (b"", "magic string"),
        (b"\x93NUMPY\x07\x00rest", "version is unknown"),
        (bytes(LARGEST_CODE + 1), "too large"),
    ],
)
def test_what_is_no_code_is_refused(bare: Path, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "code.npy").write_bytes(data)
    error = refusal(bare, prompt="rain", text_code=str(tmp_path / "code.npy"))
    assert (error.file, error.key) == (str(tmp_path / "code.npy"), "text_code")
    assert "16 float32 numbers" in error.problem and words in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_code_that_is_not_finite_is_refused(bare: Path, tmp_path: Path, bad: float) -> None:
    array = code("rain").astype(np.float64)
    array[3] = bad
    np.save(tmp_path / "code.npy", array)
    error = refusal(bare, prompt="rain", text_code=str(tmp_path / "code.npy"))
    assert error.key == "text_code" and "1 of 16 numbers of the text code are NaN or infinite" in error.problem


def test_a_code_that_is_not_there_is_named(bare: Path, tmp_path: Path) -> None:
    error = refusal(bare, prompt="rain", text_code=str(tmp_path / "none.npy"))
    assert error.file == str(tmp_path / "none.npy") and "No such file" in str(error.value)
    for said in ("", "a\0b", 5):
        assert refusal(bare, prompt="rain", text_code=said).key == "text_code"


# Codes in checkpoints


def test_a_saved_model_brings_its_prompts(bare: Path, codes: Path, tmp_path: Path) -> None:
    net = load_checkpoint(bare, prompt="smear,noise,rain", text_code=str(codes))
    path = save_checkpoint(net, tmp_path / "own.safetensors")
    assert load_file(path)["prompts.smear"].shape == (TEXT,)
    again = load_checkpoint(path)
    assert [*again.module.prompts] == ["smear", "noise", "rain"] and again.options == {"prompt": "smear,noise,rain"}
    np.testing.assert_array_equal(again.constants["perturbation"], net.constants["perturbation"])
    assert again.configuration == net.configuration
    chosen = load_checkpoint(path, prompt="rain,smear")
    assert [*chosen.module.prompts] == ["rain", "smear"] and chosen.options == {"prompt": "rain,smear"}
    np.testing.assert_array_equal(chosen.module.prompts["rain"].values, code("rain"))
    error = refusal(path, prompt="haze")
    assert "the checkpoint brings smear, noise, rain" in error.remedy
    # A file that the user names wins.
    other = loaded(path, prompt="rain", text_code=str(codes / "smear.npy"))
    np.testing.assert_array_equal(other.prompts["rain"].values, code("smear"))
    assert other.prompts["rain"].sentence == "Rain"


@pytest.mark.parametrize(
    "change",
    [
        lambda state, told: state.pop("prompts.rain"),
        lambda state, told: state.update({"prompts.haze": torch.zeros(TEXT)}),
        lambda state, told: state.update({"prompts.rain": torch.zeros(TEXT + 1)}),
        lambda state, told: state.update({"prompts.rain": torch.zeros(TEXT, dtype=torch.int32)}),
        lambda state, told: state.update({"prompts.rain": torch.full((TEXT,), torch.nan)}),
        lambda state, told: told["configuration"].update(prompts=[{"name": "noise"}]),
        lambda state, told: told["configuration"].update(prompts=[{"name": [1], "sentence": ""}]),
        lambda state, told: told["configuration"].update(prompts=[{"name": n, "sentence": 5} for n in PROMPTS]),
        lambda state, told: told["configuration"].update(
            prompts=[{"name": n, "sentence": "x" * 9999} for n in PROMPTS]
        ),
        lambda state, told: told["configuration"].update(prompts="noise"),
    ],
)
def test_prompts_of_a_checkpoint_that_do_not_fit_are_refused(tmp_path: Path, change: Any) -> None:
    net = network_of(network(SMALL, PROMPTS))
    state = dict(net.architecture.stored(net.module))
    told = json.loads(json.dumps({"architecture": "dfpir", "configuration": net.configuration}))
    change(state, told)
    error = refusal(write_safetensors(tmp_path / "own.safetensors", state, told))
    assert (
        error.key is not None
        and error.key.startswith("prompts")
        and "save_checkpoint" in error.remedy + "save_checkpoint"
    )


# What is told


def test_conditions_tell_what_each_prompt_is(bare: Path, codes: Path) -> None:
    net: Network = load_checkpoint(bare, prompt="noise,rain,smear", text_code=str(codes))
    told = conditions(net.module)
    assert [*told] == ["noise", "rain", "smear"]
    np.testing.assert_array_equal(told["noise"].constants["perturbation"], net.constants["perturbation"])
    assert not np.array_equal(told["rain"].constants["perturbation"], net.constants["perturbation"])
    for name, condition in told.items():
        about = json.loads(json.dumps(condition.about))
        assert about["sentence"] == SENTENCES.get(name, "")
        assert about["sha256"] == hashlib.sha256(code(name).astype("<f4").tobytes()).hexdigest()
        assert [*about["orders"]] == [*about["gaps"]] == ["latent", "level3", "level2", "level1"]
        for level, order in about["orders"].items():
            width = SMALL.dim * {"latent": 8, "level3": 4, "level2": 2, "level1": 1}[level]
            assert sorted(order) == [*range(2 * width)] and about["gaps"][level] > 0
    block = net.module.encoder_shuffle_channel1
    with torch.no_grad():
        p = block.linear_layer3(block.linear_layer1(torch.from_numpy(code("noise")))).double()
    ranked = np.sort(p.numpy())[::-1]
    assert told["noise"].about["gaps"]["level1"] == pytest.approx(-np.diff(ranked).max(), abs=1e-5)


# CLIP


@pytest.mark.parametrize("pairs", [False, True])
def test_the_tokenizer_is_clips(pairs: bool) -> None:
    tokens = Tokenizer(tokenizer_json(pairs))
    for sentence, ids in IDS.items():
        assert tokens(sentence) == [START, *ids, END]
    assert tokens("  NOISE\twith\n blur ") == [START, 9307, 593, 27976, END]


def test_repeated_letters_merge_from_the_left() -> None:
    vocab = {part: n for n, part in enumerate(("a", "a</w>", "aa", "aa</w>", "aaa</w>"))}
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": ["a a", "a a</w>", "aa a</w>"]}
    special = [{"content": "<|startoftext|>", "id": 8}, {"content": "<|endoftext|>", "id": 9}]
    tokens = Tokenizer({"added_tokens": special, "model": model})
    assert [tokens("a" * n)[1:-1] for n in (1, 2, 3, 4, 5)] == [[1], [3], [4], [2, 3], [2, 4]]


def test_the_tower_is_clips_text_encoder(clip: Path) -> None:
    tower = TextTower(clip, TEXT)
    for sentence, ids in IDS.items():
        expected = restated(clip, [START, *ids, END])
        np.testing.assert_allclose(tower.code(sentence), expected, rtol=0, atol=2e-7 * np.abs(expected).max())


def test_codes_of_known_prompts_come_from_clip(bare: Path, clip: Path) -> None:
    net = load_checkpoint(bare, prompt="derain,haze", clip=str(clip))
    assert net.options == {"prompt": "derain,haze", "clip": str(clip)}
    tower = TextTower(clip, TEXT)
    for name, told in net.module.prompts.items():
        np.testing.assert_array_equal(told.values, tower.code(SENTENCES[name]))
        assert told.sentence == SENTENCES[name] and told.tower is None
    assert "clip" not in conditions(net.module)["haze"].about


def test_a_saved_code_wins_over_clip_and_their_difference_is_told(bare: Path, clip: Path, codes: Path) -> None:
    net = load_checkpoint(bare, prompt="noise,smear,haze", text_code=str(codes), clip=str(clip))
    np.testing.assert_array_equal(net.module.prompts["noise"].values, code("noise"))
    told = {name: condition.about for name, condition in conditions(net.module).items()}
    made = TextTower(clip, TEXT).code("Noise")
    assert told["noise"]["clip"]["difference"] == pytest.approx(np.abs(made - code("noise")).max())
    assert told["noise"]["clip"]["moved"]["latent"] > 100
    assert "clip" not in told["smear"] and "clip" not in told["haze"]
    assert "otherwise than the saved code" in net.architecture.about(net.module)
    np.save(codes / "noise.npy", made)
    net = load_checkpoint(bare, prompt="noise", text_code=str(codes), clip=str(clip))
    assert conditions(net.module)["noise"].about["clip"] == {
        "difference": 0.0, "moved": {"latent": 0, "level3": 0, "level2": 0, "level1": 0},
    }  # fmt: skip
    assert "otherwise" not in net.architecture.about(net.module)


def test_codes_that_a_checkpoint_brings_are_compared_with_clip(tmp_path: Path, clip: Path) -> None:
    path = save_checkpoint(network_of(network(SMALL, PROMPTS)), tmp_path / "own.safetensors")
    net = loaded(path, clip=str(clip))
    assert [*net.prompts] == [*PROMPTS] and all(c.tower is not None for c in net.prompts.values())
    np.testing.assert_array_equal(net.prompts["rain"].values, code("rain"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_of_clip_is_named(bare: Path, tmp_path: Path, name: str) -> None:
    folder = clip_folder(tmp_path / "clip")
    (folder / name).unlink()
    error = refusal(bare, prompt="rain", clip=str(folder))
    assert (error.file, error.key, error.problem) == (str(folder / name), "clip", "cannot be read")
    assert "No such file" in str(error.value) and "tokenizer.json" in error.remedy
    (folder / name).mkdir()
    assert "folder" in str(refusal(bare, prompt="rain", clip=str(folder)).value)


def without(folder: Path, key: str) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({k: v.clone() for k, v in state.items() if k != key}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", lambda f: (f / "config.json").write_text("[]"), "cannot be read"),
        ("config.json", lambda f: (f / "config.json").write_text("{" * 100_000), "cannot be read"),
        ("config.json", lambda f: (f / "config.json").write_text('{"text_config": 3}'), "activation"),
        ("config.json", lambda f: (f / "config.json").write_text('{"hidden_act": "gelu"}'), "activation"),
        ("config.json", lambda f: (f / "config.json").write_bytes(bytes(2 << 20)), "cannot be read"),
        ("tokenizer.json", lambda f: (f / "tokenizer.json").write_text("{}"), "is not CLIP's"),
        ("tokenizer.json", lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}'), "CLIP's"),
        ("tokenizer.json", lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), "is not CLIP's"),
        ("model.safetensors", lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read"),
        ("model.safetensors", lambda f: without(f, "text_projection.weight"), "CLIP's text tower"),
        ("model.safetensors", lambda f: without(f, "text_model.encoder.layers.1.mlp.fc1.bias"), "CLIP's text tower"),
        (
            "model.safetensors",
            lambda f: (f / "config.json").write_text('{"text_config": {"num_attention_heads": 5}}'),
            "CLIP's text tower",
        ),
        (
            "model.safetensors",
            lambda f: (f / "config.json").write_text('{"text_config": {"num_attention_heads": "4"}}'),
            "CLIP's text tower",
        ),
    ],
)
def test_another_model_than_clip_is_refused(bare: Path, tmp_path: Path, name: str, change: Any, words: str) -> None:
    folder = clip_folder(tmp_path / "clip")
    change(folder)
    error = refusal(bare, prompt="rain", clip=str(folder))
    assert (error.file, error.key) == (str(folder / name), "clip") and words in error.problem


def test_a_sentence_that_the_tower_cannot_take_is_refused(clip: Path) -> None:
    tower = TextTower(clip, TEXT)
    for sentence, words in (("Fog", "no token"), ("noise " * 76, "at most 77 tokens"), ("noisé", "no token")):
        with pytest.raises(CheckpointError, match=words):
            tower.code(sentence)
    assert tower.code("noise " * 75).shape == (TEXT,)


def test_a_tower_of_another_width_is_refused(bare: Path, tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    state["text_projection.weight"] = torch.zeros(TEXT + 1, 32)
    save_file(state, folder / "model.safetensors")
    error = refusal(bare, prompt="rain", clip=str(folder))
    assert "no code of 16 finite numbers" in error.problem and error.value == (17,)
