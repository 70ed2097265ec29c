"""Text codes: what tells a DFPIR which degradation to take away. A code is data, and never made up.

Codes come from files that the user names, from the checkpoint, or from the text tower of a local CLIP, in this order.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from runtime.arrays import Float32
from runtime.errors import CheckpointError, plain
from runtime.untrusted import IrregularError, TooLargeError, read_untrusted

from .clip import TextTower

SENTENCES = {
    "denoise15": "Gaussian noise with a standard deviation of 15",
    "denoise25": "Gaussian noise with a standard deviation of 25",
    "denoise50": "Gaussian noise with a standard deviation of 50",
    "derain": "Rain degradation with rain lines",
    "dehaze": "Hazy degradation with normal haze",
    "deblur": "Blur degradation with motion blur",
    "lowlight": "Lowlight degradation",
    "noise": "Noise",
    "rain": "Rain",
    "haze": "Haze",
}
"""What the reference's networks were trained with: detailed sentences, or the last three, of one word each."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
LONGEST_SENTENCE = 1000
LARGEST_CODE = 1 << 20
STORED = "prompts."
"""How keys of codes begin in our own checkpoints."""
OPTIONS = {
    "prompt": "which degradation, or several, comma-separated",
    "text_code": "its code as .npy, for several a folder of NAME.npy or a comma-separated list",
    "clip": "folder of a local clip-vit-base-patch32, which makes codes",
}
WANTED = (
    f"say --option prompt=NAME ({', '.join(list(SENTENCES)[:7])}; {', '.join(list(SENTENCES)[7:])} for a network of "
    "one-word prompts) and --option text_code=NAME.npy, best saved where the network was trained: "
    "numpy.save('NAME.npy', clip.load('ViT-B/32')[0].encode_text(clip.tokenize('SENTENCE').cuda()).float().detach()"
    ".cpu().numpy()), or --option clip=FOLDER of a local clip-vit-base-patch32 (config.json, model.safetensors, "
    "tokenizer.json)"
)
"""What to do where there is no code."""


@dataclass(frozen=True, eq=False)
class TextCode:
    """A sentence and its code.

    Attributes:
        values: [text], finite.
        sentence: empty where it is not known.
        tower: code of a local CLIP for the same sentence, where there was one to compare with.
    """

    values: Float32
    sentence: str = ""
    tower: Float32 | None = field(default=None)

    @property
    def tensor(self) -> Tensor:
        """[1, text]."""
        return torch.from_numpy(self.values)[None]


def stored_codes(state: Mapping[str, Tensor], told: object, text: int, file: Path) -> dict[str, TextCode]:
    """The codes that a checkpoint of ours brings.

    Args:
        state: its tensors with keys `prompts.NAME`.
        told: `prompts` of its configuration: a list of {"name", "sentence"} in order, or None.
        text: numbers of a code.
        file: named in errors.

    Raises:
        CheckpointError: a code is misshapen or not finite, or the list is not that of the codes.
    """
    try:
        sentences = {str(entry["name"]): entry["sentence"] for entry in told}  # type: ignore[attr-defined]
    except (TypeError, KeyError):
        sentences = {}
    fits = all(isinstance(sentence, str) and len(sentence) <= LONGEST_SENTENCE for sentence in sentences.values())
    if not fits or {STORED + name for name in sentences} != {*state}:
        raise CheckpointError(
            "the prompts of the configuration are not those of the codes",
            file=file,
            key="prompts",
            value=", ".join(sentences) or "none",
            remedy="save it again with export.networks.save_checkpoint",
        )
    codes = {}
    for name, sentence in sentences.items():
        value = state[STORED + name]
        if not NAME.fullmatch(name) or value.shape != (text,) or not value.is_floating_point():
            raise CheckpointError(
                f"no text code, {text} numbers are expected",
                file=file,
                key=STORED + name,
                value=tuple(value.shape),
                remedy="save it again with export.networks.save_checkpoint",
            )
        codes[name] = TextCode(_finite(value.float().numpy(), file, STORED + name), sentence)
    return codes


def chosen_codes(
    stored: Mapping[str, TextCode], options: Mapping[str, Any], text: int, file: Path
) -> dict[str, TextCode]:  # fmt: skip
    """The codes that a network is loaded with, the first of which it is built with.

    Args:
        stored: those of its checkpoint.
        options: of OPTIONS.
        text: numbers of a code.
        file: the checkpoint, named in errors.

    Raises:
        CheckpointError: a prompt has no code, or a file that was named is not one.
    """
    given, folder = (_path_text(options, name, file) for name in ("text_code", "clip"))
    if "prompt" not in options:
        if given is None and folder is None:
            return dict(stored)
        if given is not None or not stored:
            problem = "it is not said which prompt this is for"
            raise CheckpointError(problem, file=file, key="prompt", remedy=WANTED)
    names = _names(options["prompt"], file) if "prompt" in options else [*stored]
    saved = {} if given is None else _files(given, names, file)
    tower = None if folder is None else TextTower(Path(folder), text)
    codes = {}
    for name in names:
        sentence = SENTENCES.get(name, "")
        code = stored.get(name)
        if name in saved:
            code = TextCode(read_code(saved[name], text), code.sentence if code else sentence)
        known = code.sentence if code else sentence
        made = tower.code(known) if tower is not None and known else None
        values = made if code is None else code.values
        if values is None:
            raise CheckpointError(
                "there is no code for this prompt" + ("" if known else ", and it has no sentence that we know"),
                file=file,
                key="prompt",
                value=name,
                remedy=f"the checkpoint brings {', '.join(stored)}; or {WANTED}" if stored else WANTED,
            )
        codes[name] = TextCode(values, known, None if code is None else made)
    _distinct(codes, file)
    return codes


def _distinct(codes: Mapping[str, TextCode], file: Path) -> None:
    """Refuse two prompts of one code: no two sentences have the same. Raises CheckpointError."""
    seen: dict[bytes, str] = {}
    for name, code in codes.items():
        other = seen.setdefault(code.values.tobytes(), name)
        if other != name and code.sentence != codes[other].sentence:
            raise CheckpointError(
                f"{other} and {name} have the same code",
                file=file,
                key="text_code",
                value=name,
                remedy="give each prompt the code of its own sentence",
            )


def read_code(path: Path, text: int) -> Float32:
    """The code in a `.npy` file: [text] or [1, text] finite float32 or float64. Raises CheckpointError."""
    try:
        data = read_untrusted(path, LARGEST_CODE)
        stream = io.BytesIO(data)
        reads = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}
        shape, _, dtype = reads[npy.read_magic(stream)[0]](stream)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects, which are not read")
        if shape not in ((text,), (1, text)) or dtype.kind != "f" or dtype.itemsize not in (4, 8):
            raise ValueError(f"it is {dtype} {list(shape)}")
        values = np.frombuffer(data[stream.tell() :], dtype)
        if values.size != text:
            raise ValueError(f"it holds {values.size} numbers")
    except (IrregularError, TooLargeError, OSError, ValueError, KeyError, EOFError) as error:
        told = {TooLargeError: "it is too large", KeyError: "its version is unknown"}.get(type(error))
        raise CheckpointError(
            f"no text code: a .npy of {text} float32 numbers is expected",
            file=path,
            key="text_code",
            value=told or (error.strerror if isinstance(error, OSError) else None) or error,
            remedy="save it with numpy.save, as the code of the sentence that the network was trained with",
        ) from None
    with np.errstate(over="ignore"):
        return _finite(values.astype(np.float32), path, "text_code")


def _finite(values: Float32, file: Path, key: str) -> Float32:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        problem = f"{bad} of {values.size} numbers of the text code are NaN or infinite"
        raise CheckpointError(problem, file=file, key=key, remedy="save the code again")
    if np.ptp(values) == 0:
        raise CheckpointError(
            "all numbers of the text code are equal", file=file, key=key, value=values[0], remedy="save the code again"
        )
    return values


def _names(said: object, file: Path) -> list[str]:
    names = [name.strip() for name in said.split(",")] if isinstance(said, str) else [""]
    if len({*names}) < len(names) or not all(map(NAME.fullmatch, names)):
        raise CheckpointError(
            "no name of a prompt, or one twice",
            file=file,
            key="prompt",
            value=said,
            remedy=f"names of small letters, digits and _, such as {', '.join(SENTENCES)}",
        )
    return names


def _path_text(options: Mapping[str, Any], name: str, file: Path) -> str | None:
    said = options.get(name)
    if said is not None and (not isinstance(said, str) or not said or "\0" in said):
        raise CheckpointError("is no path", file=file, key=name, value=said, remedy=f"it is {OPTIONS[name]}")
    return said


def _files(said: str, names: Sequence[str], file: Path) -> dict[str, Path]:
    """{prompt: file of its code}: one file for one prompt, else those of that name."""
    path = Path(said)
    if len(names) == 1 and path.stem in SENTENCES and path.stem != names[0]:
        raise CheckpointError(
            f"is the code of another prompt, {path.stem}",
            file=path,
            key="text_code",
            value=names[0],
            remedy=f"say --option prompt={path.stem}, or name the file {names[0]}.npy if it is that",
        )
    if path.is_dir():
        return {name: path / f"{name}.npy" for name in names if (path / f"{name}.npy").exists()}
    if len(names) == 1 and (path.exists() or "," not in said):
        return {names[0]: path}
    files = {part.stem: part for part in map(Path, said.split(","))}
    strange = [stem for stem in files if stem not in names]
    if strange:
        raise CheckpointError(
            "a text code is not named as a prompt is",
            file=file,
            key="text_code",
            value=plain(strange[0]),
            remedy=f"name the files {', '.join(f'{name}.npy' for name in names)}",
        )
    return files
