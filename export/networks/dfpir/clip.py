"""The text tower of a local clip-vit-base-patch32: a sentence to its code. Nothing is fetched, nothing is executed.

It computes in float64 from the floats of the file. The codes of a training were made in FP16 on a GPU and differ a
little, by which channels may change places: a code that was saved there is better.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.arrays import Float32
from runtime.errors import CheckpointError
from runtime.untrusted import IrregularError, TooLargeError, open_regular, read_untrusted

HEADS = 8
NORM_EPS = 1e-5
SLOPE = 1.702
"""Of CLIP's GELU, x sigmoid(1.702 x)."""
PLACES = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
"""Words of lower-case ASCII text."""
LARGEST = {"config.json": 1 << 20, "tokenizer.json": 32 << 20, "model.safetensors": 4 << 30}
REMEDY = "give the folder of clip-vit-base-patch32: config.json, model.safetensors and tokenizer.json"


class Tokenizer:
    """CLIP's byte-level BPE as `tokenizer.json` describes it, for ASCII sentences.

    Args:
        content: of the file.

    Raises:
        KeyError, TypeError, ValueError: it describes something else.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        model = content["model"]
        if model["type"] != "BPE" or model.get("end_of_word_suffix") != WORD_END:
            raise ValueError("it is no byte pair encoding with CLIP's word ends")
        special = {t["content"]: t["id"] for t in content.get("added_tokens", ())}
        self.ids: dict[str, int] = {**special, **model["vocab"]}
        if not all(isinstance(i, int) and i >= 0 for i in (*self.ids.values(), self.ids[START], self.ids[END])):
            raise ValueError("its ids are no whole numbers")
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        self.ranks: dict[tuple[str, ...], int] = {pair: rank for rank, pair in enumerate(merges)}

    def __call__(self, sentence: str) -> list[int]:
        """Ids of a sentence, between those of start and end. Raises KeyError where a piece is not in the vocabulary."""
        words = PIECES.findall(sentence.lower())
        return [self.ids[START], *(self.ids[part] for word in words for part in self._merged(word)), self.ids[END]]

    def _merged(self, word: str) -> list[str]:
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            pairs = [(self.ranks.get(pair, len(self.ranks)), pair) for pair in pairwise(parts)]
            rank, pair = min(pairs)
            if rank == len(self.ranks):
                break
            joined: list[str] = []
            for part in parts:
                # A part that was just joined takes no second one.
                if joined and (joined[-1], part) == pair:
                    joined[-1] = "".join(pair)
                else:
                    joined.append(part)
            parts = joined
        return parts


class TextTower:
    """Makes codes of sentences; weights are read from the file as they are needed.

    Args:
        folder: with config.json, model.safetensors and tokenizer.json.
        text: numbers of a code.

    Raises:
        CheckpointError: a file is missing or not what it should be; `file` names it.
    """

    def __init__(self, folder: Path, text: int) -> None:
        self._folder, self._text = folder, text
        config = self._json("config.json")
        told = config.get("text_config", config)
        if not isinstance(told, dict) or told.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise self._refused("config.json", "is not that of OpenAI's CLIP: its activation is not quick_gelu")
        self._heads = told.get("num_attention_heads", HEADS)
        try:
            self._tokens = Tokenizer(self._json("tokenizer.json"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._refused("tokenizer.json", "is not CLIP's", error) from None
        self._weights = folder / "model.safetensors"
        try:
            file, size = open_regular(self._weights)
            file.close()
            if size > LARGEST["model.safetensors"]:
                raise TooLargeError(size)
            self._open = safetensors.safe_open(self._weights, "pt")
        except (OSError, TooLargeError, safetensors.SafetensorError) as error:
            raise self._refused("model.safetensors", "cannot be read", _cause(error)) from None

    def code(self, sentence: str) -> Float32:
        """The code [text] of an ASCII sentence, not normalised. Raises CheckpointError."""
        try:
            ids = self._tokens(sentence)
        except KeyError as error:
            raise self._refused("tokenizer.json", "has no token for a part of the sentence", error.args[0]) from None
        if not sentence.isascii() or len(ids) > PLACES:
            raise self._refused("tokenizer.json", f"takes ASCII sentences of at most {PLACES} tokens", sentence)
        try:
            with torch.no_grad():
                code = self._encoded(ids).float().numpy()
        except (safetensors.SafetensorError, RuntimeError, IndexError, TypeError, ZeroDivisionError) as error:
            raise self._refused("model.safetensors", "does not hold CLIP's text tower", error) from None
        if code.shape != (self._text,) or not np.isfinite(code).all():
            problem = f"gives no code of {self._text} finite numbers"
            raise self._refused("model.safetensors", problem, code.shape)
        return code

    def _encoded(self, ids: list[int]) -> Tensor:
        table = self._open.get_slice("text_model.embeddings.token_embedding.weight")
        x = torch.cat([table[i : i + 1] for i in ids]).double()
        x = x + self._get("text_model.embeddings.position_embedding.weight")[: len(ids)]
        layer = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
        count = len({m.group(1) for m in map(layer.match, self._open.keys()) if m})
        for index in range(count):
            part = f"text_model.encoder.layers.{index}"
            x = x + self._attended(self._normed(x, f"{part}.layer_norm1"), f"{part}.self_attn")
            y = self._linear(self._normed(x, f"{part}.layer_norm2"), f"{part}.mlp.fc1")
            x = x + self._linear(y * torch.sigmoid(SLOPE * y), f"{part}.mlp.fc2")
        # Attention is causal: the end token has seen all before it, and what comes behind it would change nothing.
        return F.linear(self._normed(x[-1], "text_model.final_layer_norm"), self._get("text_projection.weight"))

    def _attended(self, x: Tensor, part: str) -> Tensor:
        """x [tokens, width] -> the same shape."""
        q, k, v = (
            self._linear(x, f"{part}.{name}_proj").unflatten(1, (self._heads, -1)).transpose(0, 1) for name in "qkv"
        )
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self._linear(made.transpose(0, 1).flatten(1), f"{part}.out_proj")

    def _normed(self, x: Tensor, part: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._get(f"{part}.weight"), self._get(f"{part}.bias"), NORM_EPS)

    def _linear(self, x: Tensor, part: str) -> Tensor:
        return F.linear(x, self._get(f"{part}.weight"), self._get(f"{part}.bias"))

    def _get(self, key: str) -> Tensor:
        value: Tensor = self._open.get_tensor(key)
        return value.double()

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(read_untrusted(self._folder / name, LARGEST[name]).decode("utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no object")
        except (OSError, TooLargeError, ValueError, RecursionError) as error:
            raise self._refused(name, "cannot be read", _cause(error)) from None
        return content

    def _refused(self, name: str, problem: str, value: object = None) -> CheckpointError:
        return CheckpointError(problem, file=self._folder / name, key="clip", value=value, remedy=REMEDY)


def _cause(error: Exception) -> object:
    if isinstance(error, TooLargeError):
        return f"{error.size} bytes"
    return (error.strerror if isinstance(error, (OSError, IrregularError)) else None) or error
