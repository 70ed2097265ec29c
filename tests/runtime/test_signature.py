"""Signatures: what they promise of planes, prompts and side outputs, and that nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from runtime.errors import BundleError
from runtime.manifest import MANIFEST, Manifest, parse
from runtime.metrics import METRIC_SETS
from runtime.signature import InnerPath, Plane, Ports, Prompt, Side, Signature, plane_text
from tests.contracts.bundles import known_bundle, sealed
from tests.contracts.coded import CODE_FILE, CODED
from tests.contracts.graphs import SMALL, damp_like

FRAME, RESTORED = Plane("frame", 3, 8, 16), Plane("restored", 3, 8, 16)
METRICS = Prompt("metrics", (1, 6), "metrics", "paper6")
CODE = Prompt("code", (4,), "constant", "prompts/code.npy")
ROUTING = Side("routing", (2, 4))
NAMES = (
    "",
    "Frame",
    "1frame",
    "_frame",
    "frame.1",
    "frame-1",
    "frame ",
    "frame\n",
    "\x1b[31m",
    "rahmen\u00e4",
    "f" * 65,
)
OUTSIDE = ("", "/etc/hostname", "../a", "a/../b", "./a", "a//b", "a/", "a\\b", "a\0b", "..", ".")
NO_COUNTS = (0, -1, (1 << 20) + 1, 1.0, 1.5, "1", True, None, [1])


def constant(**change: Any) -> Prompt:
    return Prompt(**{"name": "code", "shape": (4,), "kind": "constant", "of": "a.npy", **change})


def refused(make: Callable[[], object], key: str) -> None:
    """Every complaint is of this key."""
    with pytest.raises(ValidationError) as caught:
        make()
    assert {error["loc"][0] for error in caught.value.errors()} == {key}


# What a signature tells


def test_ports_are_in_order_and_of_every_tensor() -> None:
    signature = damp_like(31, 64, 48, "reference15", layers=2, experts=4)
    assert signature.ports == Ports(
        {"frame": (1, 31, 64, 48), "metrics": (1, 15)}, {"restored": (1, 31, 64, 48), "routing": (2, 4)}
    )
    assert list(signature.ports.shapes) == ["frame", "metrics", "restored", "routing"]
    assert signature.metrics_ports == Ports({"frame": (1, 31, 64, 48)}, {"metrics": (1, 15)})
    both = Signature(FRAME, RESTORED, (CODE, METRICS), (ROUTING,))
    assert list(both.ports.inputs) == ["frame", "code", "metrics"] and both.ports.inputs["code"] == (4,)


def test_a_signature_tells_what_it_has() -> None:
    assert (SMALL.metrics, SMALL.constants, SMALL.routing) == (METRICS, (), ROUTING)
    assert SMALL.metric_names == METRIC_SETS["paper6"]
    assert (CODED.metrics, CODED.routing, CODED.metric_names) == (None, None, ())
    assert CODED.constants == (Prompt("code", (1, 5), "constant", CODE_FILE),)
    assert list(CODED.ports.shapes) == ["shot", "code", "restored"]
    with pytest.raises(AssertionError):
        _ = CODED.metrics_ports


def test_a_plane_tells_its_shape() -> None:
    plane = Plane("shot", 1, 256, 310, "coded")
    assert (plane.shape, plane.size) == ((1, 1, 256, 310), (256, 310))
    assert plane_text(plane) == "1 bands x 256 lines x 310 samples"
    assert FRAME.kind == "cube"


@pytest.mark.parametrize(
    ("measured", "restored", "alike"),
    [
        (FRAME, RESTORED, True),
        (FRAME, Plane("restored", 3, 8, 16, "rgb"), False),
        (Plane("frame", 3, 8, 16, "coded"), RESTORED, False),
        (FRAME, Plane("restored", 4, 8, 16), False),
        (FRAME, Plane("restored", 3, 9, 16), False),
        (FRAME, Plane("restored", 3, 8, 15), False),
        (Plane("frame", 3, 8, 16, "rgb"), Plane("restored", 3, 8, 16, "rgb"), True),
    ],
)
def test_only_planes_of_one_kind_and_size_are_alike(measured: Plane, restored: Plane, alike: bool) -> None:
    assert Signature(measured, restored, tiling="fixed", band_groups=False).alike is alike


def test_a_signature_is_a_value() -> None:
    assert damp_like(3, 8, 16) == SMALL and hash(damp_like(3, 8, 16)) == hash(SMALL)
    assert damp_like(3, 8, 17) != SMALL != CODED
    # What was asked of it before changes nothing.
    assert SMALL.ports.shapes and damp_like(3, 8, 16) == SMALL
    for part, name in ((SMALL, "tiling"), (FRAME, "bands"), (METRICS, "of"), (ROUTING, "shape")):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, 1)


# What is refused


@pytest.mark.parametrize("name", NAMES)
def test_tensors_have_plain_names(name: str) -> None:
    for make in (
        lambda: Plane(name=name, bands=3, lines=8, samples=16),
        lambda: Prompt(name=name, shape=(1, 6), kind="metrics", of="paper6"),
        lambda: constant(name=name),
        lambda: Side(name=name, shape=(2, 4)),
    ):
        refused(make, "name")


@pytest.mark.parametrize("name", ["f", "f" * 64, "frame_1", "f1_"])
def test_plain_names_are_taken(name: str) -> None:
    assert Plane(name, 1, 1, 1).name == Side(name, (1, 1)).name == name


@pytest.mark.parametrize("count", NO_COUNTS)
def test_bands_lines_and_samples_are_counts(count: Any) -> None:
    sizes = {"bands": 3, "lines": 8, "samples": 16}
    for key in sizes:
        refused(lambda key=key: Plane(name="frame", **{**sizes, key: count}), key)


@pytest.mark.parametrize("count", NO_COUNTS)
def test_shapes_are_counts(count: Any) -> None:
    refused(lambda: constant(shape=(4, count)), "shape")
    refused(lambda: Side(name="routing", shape=(2, count)), "shape")


@pytest.mark.parametrize("shape", [(), (1,) * 9, 4, "4", [4], None])
def test_shapes_have_one_to_eight_axes(shape: Any) -> None:
    assert constant(shape=(1,) * 8).shape == (1,) * 8
    refused(lambda: constant(shape=shape), "shape")


@pytest.mark.parametrize("shape", [(8,), (1, 2, 4)])
def test_routing_has_layers_and_experts(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="routing has two axes, layers and experts"):
        Side("routing", shape)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_constant_lies_inside_the_bundle(path: str) -> None:
    with pytest.raises(ValidationError, match="a relative path inside the bundle"):
        Prompt("code", (4,), "constant", path)
    with pytest.raises(ValidationError, match="a relative path inside the bundle"):
        TypeAdapter(InnerPath).validate_python(path)
    assert TypeAdapter(InnerPath).validate_python("a/b..npy") == "a/b..npy"


def test_a_path_has_a_length() -> None:
    assert constant(of="a" * 300).of == "a" * 300
    refused(lambda: constant(of="a" * 301), "of")


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_is_of_a_graph_by_its_name(name: str) -> None:
    assert Prompt("embedding", (1, 512), "embedding", "extractor").of == "extractor"
    with pytest.raises(ValidationError):
        Prompt("embedding", (1, 512), "embedding", name)


@pytest.mark.parametrize("shape", [(512,), (2, 512), (1, 2, 3)])
def test_an_embedding_is_one_row(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        Prompt("embedding", shape, "embedding", "extractor")


def test_a_network_takes_one_embedding() -> None:
    embedding = Prompt("embedding", (1, 8), "embedding", "extractor")
    signature = Signature(FRAME, RESTORED, (CODE, embedding))
    assert signature.embedding == embedding and signature.metrics is None and signature.constants == (CODE,)
    assert signature.embedding_ports == Ports(
        {"frame": FRAME.shape, "share": (1, 1, *FRAME.shape[2:])}, {"embedding": (1, 8)}
    )
    assert Signature(FRAME, RESTORED, (METRICS,)).embedding is None
    with pytest.raises(ValidationError, match="one embedding"):
        Signature(FRAME, RESTORED, (embedding, Prompt("other", (1, 8), "embedding", "extractor")))


@pytest.mark.parametrize("metric_set", METRIC_SETS)
def test_metrics_have_the_shape_of_their_set(metric_set: str) -> None:
    count = len(METRIC_SETS[metric_set])
    assert Prompt("metrics", (1, count), "metrics", metric_set).shape == (1, count)
    for wrong in ((count,), (1, count + 1), (2, count), (count, 1), (1, 1, count)):
        with pytest.raises(ValidationError, match=f"metric set '{metric_set}' does not have shape"):
            Prompt("metrics", wrong, "metrics", metric_set)


@pytest.mark.parametrize("metric_set", ["", "paper", "Paper6", "a.npy", "\x1b[31m"])
def test_metrics_are_of_a_known_set(metric_set: str) -> None:
    with pytest.raises(ValidationError, match="does not have shape") as caught:
        Prompt("metrics", (1, 6), "metrics", metric_set)
    assert "\x1b" not in caught.value.errors()[0]["msg"]


KINDS: dict[str, Callable[[Any], object]] = {
    "plane": lambda kind: Plane("frame", 3, 8, 16, kind=kind),
    "prompt": lambda kind: Prompt("metrics", (1, 6), kind=kind, of="paper6"),
    "side": lambda kind: Side("routing", (2, 4), kind=kind),
    "tiling": lambda kind: Signature(FRAME, RESTORED, tiling=kind),
}


@pytest.mark.parametrize("kind", ["", "Cube", "text", None, 1, True])
@pytest.mark.parametrize("part", KINDS)
def test_kinds_are_known(part: str, kind: Any) -> None:
    refused(lambda: KINDS[part](kind), "tiling" if part == "tiling" else "kind")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Signature(FRAME, Plane("frame", 3, 8, 16)),
        lambda: Signature(FRAME, RESTORED, (Prompt("frame", (4,), "constant", "a"),)),
        lambda: Signature(FRAME, RESTORED, (Prompt("restored", (4,), "constant", "a"),)),
        lambda: Signature(FRAME, RESTORED, (CODE, CODE)),
        lambda: Signature(FRAME, RESTORED, (METRICS, Prompt("metrics", (4,), "constant", "a"))),
        lambda: Signature(FRAME, RESTORED, (), (Side("restored", (2, 4)),)),
        lambda: Signature(FRAME, RESTORED, (), (Side("frame", (2, 4)),)),
        lambda: Signature(FRAME, RESTORED, (METRICS,), (Side("metrics", (2, 4)),)),
    ],
)
def test_two_tensors_of_one_name_are_refused(make: Callable[[], Signature]) -> None:
    with pytest.raises(ValidationError, match="two tensors of one name among frame"):
        make()


@pytest.mark.parametrize("size", [(9, 16), (8, 15), (16, 8)])
def test_frames_that_may_lie_anywhere_come_out_as_large_as_they_went_in(size: tuple[int, int]) -> None:
    other = Plane("restored", 3, *size)
    with pytest.raises(ValidationError, match="come out as large as they went in"):
        Signature(FRAME, other)
    assert Signature(FRAME, other, tiling="fixed").restored.size == size


@pytest.mark.parametrize("bands", [1, 2, 4, 31])
def test_groups_of_bands_come_out_with_as_many_as_they_went_in(bands: int) -> None:
    other = Plane("restored", bands, 8, 16)
    for tiling in ("free", "fixed"):
        with pytest.raises(ValidationError, match="with as many bands as they went in"):
            Signature(FRAME, other, tiling=tiling)
        assert Signature(FRAME, other, tiling=tiling, band_groups=False).restored.bands == bands


def test_one_set_of_metrics_and_one_routing_at_most() -> None:
    second = Prompt("more", (1, 6), "metrics", "paper6")
    for prompts, side in (((METRICS, second), ()), ((), (ROUTING, Side("more", (2, 4))))):
        with pytest.raises(ValidationError, match="one set of metrics and one routing at most"):
            Signature(FRAME, RESTORED, prompts, side)
    assert len(Signature(FRAME, RESTORED, (METRICS, CODE, Prompt("more", (1,), "constant", "a"))).constants) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"measured": "frame"},
        {"measured": None},
        {"restored": (3, 8, 16)},
        {"prompts": [METRICS]},
        {"prompts": METRICS},
        {"prompts": (ROUTING,)},
        {"side": [ROUTING]},
        {"side": (METRICS,)},
        {"band_groups": 1},
        {"band_groups": "true"},
        {"band_groups": None},
        {"more": 1},
    ],
    ids=str,
)
def test_other_types_and_unknown_keys_are_refused(change: dict[str, Any]) -> None:
    refused(lambda: Signature(**{"measured": FRAME, "restored": RESTORED, **change}), next(iter(change)))


# From a manifest


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A manifest's JSON, without wavelengths."""
    bundle = known_bundle(tmp_path_factory.mktemp("signature") / "bundle")
    return json.dumps(json.loads((bundle / MANIFEST).read_bytes()) | {"wavelengths": None})


def parsed(content: str, change: Callable[[dict[str, Any]], object]) -> Signature:
    """Alter the signature and the names of the golden arrays with it, and read the manifest."""
    whole = json.loads(content)
    signature = whole["signature"]
    change(signature)
    with_names = (signature["measured"], signature["restored"], *signature["prompts"], *signature["side"])
    whole["golden"]["arrays"] = {str(part["name"]): "golden/frame.npy" for part in with_names}
    return parse(sealed(whole), Manifest, file="m").signature


@pytest.mark.parametrize("signature", [SMALL, CODED, Signature(FRAME, RESTORED, (CODE, METRICS))])
def test_every_signature_comes_back_from_a_manifest(content: str, signature: Signature) -> None:
    told = TypeAdapter(Signature).dump_python(signature, mode="json")
    whole = json.loads(content) | {"signature": told, "overlap": 0}
    constants = {prompt.name: prompt.of for prompt in signature.constants}
    whole["golden"]["arrays"] = dict.fromkeys(signature.ports.shapes, "golden/frame.npy") | constants
    manifest = parse(sealed(whole), Manifest, file=Path("m"))
    assert manifest.signature == signature and manifest.signature.ports == signature.ports
    assert manifest.model_dump(mode="json")["signature"] == told
    assert set(told) == {"measured", "restored", "prompts", "side", "tiling", "band_groups", "fills"}


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda s: s.update(frame=3), r"signature\.frame"),
    "unknown key of a plane": (lambda s: s["measured"].update(depth=3), r"signature\.measured\.depth"),
    "unknown key of a prompt": (lambda s: s["prompts"][0].update(value=3), r"signature\.prompts\.0\.value"),
    "unknown key of an output": (lambda s: s["side"][0].update(of="x"), r"signature\.side\.0\.of"),
    "no bands": (lambda s: s["restored"].pop("bands"), r"signature\.restored\.bands"),
    "no shape": (lambda s: s["side"][0].pop("shape"), r"signature\.side\.0\.shape"),
    "text for a number": (lambda s: s["measured"].update(lines="8"), r"signature\.measured\.lines"),
    "a point": (lambda s: s["measured"].update(lines=8.0), r"signature\.measured\.lines"),
    "truth for a number": (lambda s: s["measured"].update(bands=True), r"signature\.measured\.bands"),
    "a number for truth": (lambda s: s.update(band_groups=1), r"signature\.band_groups"),
    "text for truth": (lambda s: s.update(band_groups="true"), r"signature\.band_groups"),
    "a number for text": (lambda s: s["measured"].update(name=1), r"signature\.measured\.name"),
    "a name for the terminal": (lambda s: s["measured"].update(name="\x1b[31m"), r"signature\.measured\.name"),
    "no list": (lambda s: s["prompts"][0].update(shape=6), r"signature\.prompts\.0\.shape"),
    "shape of text": (lambda s: s["prompts"][0].update(shape=["1", "6"]), r"signature\.prompts\.0\.shape"),
    "no axes": (lambda s: s["prompts"][0].update(kind="constant", of="a.npy", shape=[]), r"prompts\.0\.shape"),
    "a plane of nothing": (lambda s: s.update(measured={"name": "frame"}), r"signature\.measured"),
    "unknown kind": (lambda s: s["measured"].update(kind="radar"), r"signature\.measured\.kind"),
    "unknown tiling": (lambda s: s.update(tiling="loose"), r"signature\.tiling"),
    "constant outside": (lambda s: s["prompts"][0].update(kind="constant", of="../a"), "inside the bundle"),
    "one file twice": (
        lambda s: s.update(
            prompts=[{"name": name, "shape": [1, 4], "kind": "constant", "of": "prompts/a.npy"} for name in "ab"]
        ),
        "two constants of one file",
    ),
    "unknown metrics": (lambda s: s["prompts"][0].update(of="none"), "'none' does not have shape"),
    "one name twice": (lambda s: s["side"][0].update(name="metrics"), "two tensors of one name"),
    "two routings": (lambda s: s["side"].append({**s["side"][0], "name": "more"}), "one routing at most"),
    "other bands": (lambda s: s["restored"].update(bands=4), "as many bands as they went in"),
    "other size": (lambda s: s["restored"].update(lines=9), "as large as they went in"),
    "one axis": (lambda s: s["side"][0].update(shape=[4]), "two axes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_signature_is_refused_by_its_place(content: str, name: str) -> None:
    change, match = CHANGES[name]
    with pytest.raises(BundleError, match=match) as caught:
        parsed(content, change)
    assert str(caught.value).isprintable() and caught.value.exit_code == 2
    assert (caught.value.key or "").startswith("signature")


@pytest.mark.parametrize("signature", [None, [], "damp", 3, {}])
def test_a_signature_is_a_mapping(content: str, signature: Any) -> None:
    with pytest.raises(BundleError, match="signature"):
        parse(sealed(json.loads(content) | {"signature": signature}), Manifest, file="m")


def test_what_may_be_left_out_has_its_usual_value(content: str) -> None:
    def bare(signature: dict[str, Any]) -> None:
        for name in ("tiling", "band_groups"):
            signature.pop(name)
        signature.update(prompts=[], side=[])
        signature["measured"].pop("kind")

    assert parsed(content, bare) == Signature(FRAME, RESTORED)
