"""Where in a checkpoint the weights are: behind the prefix under which an architecture recognises their keys.

Trainers put state dicts into dictionaries, wrappers put names before keys. Both are the beginning of a dotted path
here, so that one search finds the weights behind any of them.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile

from torch import Tensor

from runtime.errors import CheckpointError, plain

from .architecture import Architecture
from .reading import Checkpoint, CheckpointFacts, check_plain, listed

WRAPPER = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What PyTorch's wrappers put into keys; no architecture has parts of such a name."""
AVERAGED = re.compile(r"(?:^|[._])ema(?:[._]|$)", re.IGNORECASE)
DEEPEST, MOST = 8, 32
"""Parts of a prefix, and sets of weights that are looked at, at most."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network: its kind, {its own key: tensor}, and where they were."""

    architecture: Architecture
    state: dict[str, Tensor]
    facts: CheckpointFacts


def find_weights(content: Checkpoint, known: Mapping[str, Architecture], wanted: object = None) -> Weights:
    """The weights of a checkpoint, whatever is before their keys and beside them.

    Args:
        content: of the file.
        known: architectures by id; where the file tells its own, only that one is asked.
        wanted: the prefix of the weights, or its beginning. Without it the only ones are taken, and of two of which one
            is an exponential moving average (EMA) that one, since it is what trainers deploy.

    Raises:
        CheckpointError: no architecture recognises any; there are several, or none under `wanted`; one of them is no
            plain tensor, or is there twice.
    """
    file = content.facts.file
    asked = [a for name, a in known.items() if content.architecture in (None, name)]
    places = dict(_places(sorted(path for path, _ in content.entries), asked))
    if not places:
        raise _unknown(content, known)
    prefix = _chosen([*places], wanted, content)
    state: dict[str, Tensor] = {}
    beside: Counter[str] = Counter()
    for path, value in content.entries:
        owner = max((place for place in places if path.startswith(place)), key=len, default=None)
        if owner is None and isinstance(value, Tensor):
            beside[_branch(path, prefix)] += 1
        if owner != prefix:
            continue
        own = path.removeprefix(prefix)
        key = WRAPPER.sub("", own)
        if not isinstance(value, Tensor):
            remedy = "give the state dict alone, or beside other entries under a key of its own"
            kind = type(value).__name__
            raise CheckpointError("an entry is not a tensor", file=file, key=own, value=kind, remedy=remedy)
        if key in state:
            problem = "a key is there twice, with and without its prefix"
            raise CheckpointError(problem, file=file, key=own, remedy="keep one of the two")
        state[key] = Tensor.detach(value)
    check_plain(state, content.size, file)
    rivals = tuple(_named(place) for place in places if place != prefix)
    facts = replace(
        content.facts,
        weights=_named(prefix),
        rivals=rivals,
        beside=tuple(f"{name} ({count} tensor{'s' * (count > 1)})" for name, count in beside.items()),
        doubts=(_doubt(_named(prefix), rivals),) if rivals and wanted is None else (),
    )
    return Weights(places[prefix], state, facts)


def _places(paths: Sequence[str], asked: Sequence[Architecture], prefix: str = "") -> list[tuple[str, Architecture]]:
    """(prefix, architecture) of every set of weights among sorted paths that begin with `prefix`."""
    own = [path.removeprefix(prefix) for path in paths]
    inner = []
    if prefix.count(".") < DEEPEST:
        for head, part in groupby((key for key in own if "." in key), lambda key: key.partition(".")[0]):
            inner += _places([prefix + key for key in part], asked, f"{prefix}{head}.")
        del inner[MOST:]
    keys = _unwrapped(own)
    mine = next((a for a in asked if a.recognises(keys)), None)
    if mine is None:
        return inner
    apart = tuple(place for place, _ in inner)
    rest = {key for key, path in zip(keys, paths, strict=True) if not path.startswith(apart)}
    return [(prefix, mine), *((place, a) for place, a in inner if _repeats(paths, place, rest))]


def _repeats(paths: Sequence[str], place: str, rest: Collection[str]) -> bool:
    """Whether what is behind `place` is a network of its own beside the rest, rather than a part of it."""
    keys = _unwrapped([path.removeprefix(place) for path in paths if path.startswith(place)])
    return 2 * sum(key in rest for key in keys) > len(keys)


def _unwrapped(keys: Sequence[str]) -> list[str]:
    """Without what wrappers of parts put into them; a wrapper of the whole is a prefix as any other."""
    parts = (key.partition(".") for key in keys)
    return [head + dot + WRAPPER.sub("", tail) for head, dot, tail in parts]


def _chosen(places: Sequence[str], wanted: object, content: Checkpoint) -> str:
    name = _named(f"{wanted}".rstrip(".") + ".")
    fitting = [p for p in places if wanted is None or _named(p) == name or p.startswith(f"{name}.")]
    averaged = [p for p in fitting if AVERAGED.search(p)]
    names = listed([_named(p) for p in places])
    if not fitting:
        problem = "the file holds no weights of a known network there"
        raise CheckpointError(
            problem, file=content.facts.file, key="weights", value=wanted, remedy=f"there are: {names}"
        )
    if len(fitting) == 1 or _named(fitting[0]) == name:
        return fitting[0]
    if len(fitting) == 2 and len(averaged) == 1:
        return averaged[0]
    raise CheckpointError(
        f"the file holds the weights of several networks: {names}",
        file=content.facts.file,
        key="weights",
        value=wanted,
        remedy=f"choose, for example --option weights={plain(_named(fitting[0]))}",
    )


def _doubt(taken: str, others: Sequence[str]) -> str:
    return (
        f"the file holds several sets of weights: {plain(taken)} is taken, an exponential moving average, and not "
        f"{listed(others)}; say which: --option weights={plain(taken)}, or weights={plain(others[0])}"
    )


def _unknown(content: Checkpoint, known: Mapping[str, Architecture]) -> CheckpointError:
    paths = [*content.tensors]
    shared = paths[0][: _alike(min(paths), max(paths))] if len(paths) > 1 else ""
    return CheckpointError(
        "no architecture that we know has these weights"
        + (f", which all begin with {plain(shared)}" if shared else ""),
        file=content.facts.file,
        key=paths[0],
        value=content.architecture,
        remedy=f"known architectures: {', '.join(known)}",
    )


def _named(prefix: str) -> str:
    return prefix[:-1] or "."


def _branch(path: str, prefix: str) -> str:
    """The path as far as its first part that is not the prefix's."""
    parts = path.split(".", DEEPEST + 1)
    return ".".join(parts[: _alike(parts, prefix.split(".")) + 1])


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many letters or parts both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
