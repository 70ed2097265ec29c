"""Bundles as one file: the same bytes every time, and nothing believed of an archive that a stranger made."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import archive, bundle_files
from runtime.archive import check, pack, unpack
from runtime.bundle_files import MANIFEST_SIGNED, sign_bundle, verified_bundle
from runtime.errors import BundleError, DeployError, InputError
from runtime.manifest import MANIFEST
from runtime.secret_key import SecretKey, new_key
from runtime.slots import install
from runtime.trust import NO_KEYRING, Trust
from tests.contracts.bundles import for_a_board, give_engine, known_bundle, reseal
from tests.contracts.signed import keyring

BLOCK = 512


@pytest.fixture(scope="module")
def key() -> SecretKey:
    return new_key()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: SecretKey) -> Path:
    """A signed bundle with an engine. To be read."""
    folder = for_a_board(tmp_path_factory.mktemp("packed") / "bundle")
    give_engine(folder)
    sign_bundle(folder, key)
    return folder


@pytest.fixture(scope="module")
def packed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its archive. To be read."""
    pack(bundle, out := tmp_path_factory.mktemp("archive") / "bundle.damp", NO_KEYRING)
    return out


@pytest.fixture
def ring(tmp_path: Path, key: SecretKey) -> Trust:
    return keyring(tmp_path / "ring", key)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_comes_back_as_it_was(bundle: Path, packed: Path, ring: Trust, tmp_path: Path) -> None:
    head = unpack(packed, tmp_path / "back", replace=False, trust=ring)
    assert files_of(tmp_path / "back") == files_of(bundle)
    assert head.signed and head.signed.trusted and head.made_signed and head.made_signed.trusted
    assert verified_bundle(tmp_path / "back", ring).made
    assert check(packed, ring) == head == check(bundle, ring)
    assert {p.name for p in tmp_path.iterdir()} == {"back", "ring"}


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in sorted(files_of(bundle).items(), reverse=True):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
        (copy / name).chmod(0o600)
        os.utime(copy / name, (1, 1))
    (copy / "stranger").write_bytes(b"listed by nobody")
    pack(copy, tmp_path / "again.damp")
    assert (tmp_path / "again.damp").read_bytes() == packed.read_bytes()


def test_any_tar_reads_an_archive(bundle: Path, packed: Path) -> None:
    with tarfile.open(packed) as opened:
        members = opened.getmembers()
        assert [member.name for member in members] == sorted(files_of(bundle))
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_a_damaged_bundle_is_not_packed_and_what_was_there_stays(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "golden" / "routing.npy").write_bytes(b"x" * (copy / "golden" / "routing.npy").stat().st_size)
    (tmp_path / "out.damp").write_bytes(b"before")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        pack(copy, tmp_path / "out.damp")
    assert (tmp_path / "out.damp").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2


def test_a_name_that_no_archive_takes_is_told(tmp_path: Path) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    name = "n" * 120 + ".onnx"
    (bundle / "graphs" / "fp32.onnx").rename(bundle / name)

    def rename(content: dict[str, dict[str, object]]) -> None:
        content["files"][name] = content["files"].pop("graphs/fp32.onnx")
        content["graphs"]["fp32"] = name

    reseal(bundle, rename)
    assert verified_bundle(bundle)
    with pytest.raises(BundleError, match="too long for an archive"):
        pack(bundle, tmp_path / "out.damp")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


# What strangers make


def parts(data: bytes) -> list[tuple[str, bytes, bytes]]:
    """(name, header, content with what fills it up) of an archive of ours."""
    found, place = [], 0
    while data[place] != 0:
        size = int(data[place + 124 : place + 135], 8)
        end = place + BLOCK + size + -size % BLOCK
        name = data[place : place + 100].rstrip(b"\0").decode()
        found.append((name, data[place : place + BLOCK], data[place + BLOCK : end]))
        place = end
    return found


def joined(members: list[tuple[str, bytes, bytes]], end: bytes = bytes(1024)) -> bytes:
    return b"".join(header + content for _, header, content in members) + end


def entry(name: str, data: bytes = b"x", **more: object) -> tuple[str, bytes, bytes]:
    """Any member that tarfile can write, with headers before it that extend it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    style = more.pop("style", tarfile.USTAR_FORMAT)
    assert isinstance(style, int)
    for key, value in more.items():
        setattr(info, key, value)
    return name, info.tobuf(style, "utf-8", "surrogateescape"), data + bytes(-len(data) % BLOCK)


def summed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_header(data: bytes, name: str, change: Callable[[bytearray], object]) -> bytes:
    """An archive in which one header is another one, with the sum that it needs."""
    members = []
    for member, header, content in parts(data):
        altered = bytearray(header)
        if member == name:
            change(altered)
        members.append((member, summed(altered) if member == name else header, content))
    return joined(members)


def added(*members: tuple[str, bytes, bytes]) -> Callable[[bytes], bytes]:
    """In the order of their names, as ours would be."""
    return lambda data: joined(sorted([*parts(data), *members], key=lambda member: member[0]))


def replaced(name: str, *by: tuple[str, bytes, bytes]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        members = []
        for member in parts(data):
            members += by if member[0] == name else [member]
        return joined(members)

    return change


def octal(place: int, length: int, value: int) -> Callable[[bytearray], object]:
    return lambda header: header.__setitem__(slice(place, place + length), b"%0*o" % (length, value))


GRAPH = "graphs/fp32.onnx"
PAX = {"style": tarfile.PAX_FORMAT, "pax_headers": {"size": str(1 << 40)}}
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "something else"),
    "noise": (lambda data: bytes(range(256)) * 40, "something else"),
    "only an end": (lambda data: bytes(1024), "no manifest.json"),
    "no manifest": (replaced(MANIFEST), "no manifest.json"),
    "compressed": (lambda data: b"\x1f\x8b\x08" + data, "something else"),
    "traversal": (added(entry("../stranger")), "something else"),
    "traversal inside": (added(entry("golden/../../stranger")), "something else"),
    "absolute": (added(entry("/stranger")), "something else"),
    "absolute by its prefix": (
        lambda data: with_header(
            added(entry("zz"))(data), "zz", lambda header: header.__setitem__(slice(345, 349), b"/etc")
        ),
        "something else",
    ),
    "dot": (added(entry("./stranger")), "nothing in it lists it"),
    "empty name": (added(entry("")), "something else"),
    "unlisted": (added(entry("stranger")), "nothing in it lists it"),
    "unlisted, made a top file": (added(entry("made.json.minisig.old")), "nothing in it lists it"),
    "link": (replaced(GRAPH, entry(GRAPH, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "something else"),
    "hard link": (replaced(GRAPH, entry(GRAPH, b"", type=tarfile.LNKTYPE, linkname=MANIFEST)), "something else"),
    "fifo": (replaced(GRAPH, entry(GRAPH, b"", type=tarfile.FIFOTYPE)), "something else"),
    "device": (replaced(GRAPH, entry(GRAPH, b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)), "something else"),
    "block device": (replaced(GRAPH, entry(GRAPH, b"", type=tarfile.BLKTYPE)), "something else"),
    "folder": (added(entry("graphs", b"", type=tarfile.DIRTYPE)), "something else"),
    "contiguous": (replaced(GRAPH, entry(GRAPH, b"x", type=tarfile.CONTTYPE)), "something else"),
    "NUL kind of file": (lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(156, 0)), "something else"),
    "sparse": (lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(156, ord("S"))), "something else"),
    "pax of a size": (added(entry("a", b"", **PAX)), "something else"),
    "pax of a path": (
        added(entry("a", b"", style=tarfile.PAX_FORMAT, pax_headers={"path": "../../stranger"})), "something else",
    ),
    "pax sparse": (
        added(entry("a", b"", style=tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.realsize": "1000000000"})),
        "something else",
    ),
    "pax for all": (lambda data: entry("", b"", type=tarfile.XGLTYPE)[1] + data, "something else"),
    "GNU long name": (added(entry("a" * 300, style=tarfile.GNU_FORMAT)), "something else"),
    "GNU header": (replaced(GRAPH, entry(GRAPH, style=tarfile.GNU_FORMAT)), "something else"),
    "other mode": (lambda data: with_header(data, GRAPH, octal(100, 7, 0o4755)), "something else"),
    "other owner": (lambda data: with_header(data, GRAPH, octal(108, 7, 1000)), "something else"),
    "a time": (lambda data: with_header(data, GRAPH, octal(136, 11, 1)), "something else"),
    "a link's name in a file": (
        lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(slice(157, 160), b"abc")), "something else",
    ),
    "other sum": (lambda data: data[:148] + b"7" + data[149:], "something else"),
    "negative size": (
        lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(slice(124, 136), b"\xff" * 12)), "something else",
    ),
    "signed size": (
        lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(slice(124, 126), b"-1")), "something else",
    ),
    "size with blanks": (
        lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(slice(124, 127), b"  0")), "something else",
    ),
    "size of 8 GiB": (lambda data: with_header(data, GRAPH, octal(124, 11, (8 << 30) - 1)), "cut off"),
    "manifest of 8 GiB": (lambda data: with_header(data, MANIFEST, octal(124, 11, (8 << 30) - 1)), "cut off"),
    "larger than it was": (replaced(GRAPH, entry(GRAPH, bytes(1 << 20))), "another size"),
    "smaller than it was": (replaced(GRAPH, entry(GRAPH, b"x")), "another size"),
    "a manifest that is too large": (replaced(MANIFEST, entry(MANIFEST, bytes(5 << 20))), "larger than it can be"),
    "a signature that is too large": (
        replaced(MANIFEST_SIGNED, entry(MANIFEST_SIGNED, bytes(1 << 20))), "larger than it can be",
    ),
    "twice": (added(entry(GRAPH)), "twice"),
    "manifest twice": (added(entry(MANIFEST, b"{}")), "twice"),
    "other order": (lambda data: joined(parts(data)[::-1]), "another order"),
    "a file missing": (replaced(GRAPH), "listed, and not there"),
    "engine missing": (replaced("engine/1.plan"), "listed, and not there"),
    "engine's record missing": (replaced("made.json"), "nothing in it lists it"),
    "something between files": (
        lambda data: joined([(n, h, c[:-1] + b"x" if n == "golden/metrics.npy" else c) for n, h, c in parts(data)]),
        "between it and the next file",
    ),
    "something behind the end": (lambda data: data + b"x", "another end"),
    "zeros behind the end": (lambda data: data + bytes(10240), "another end"),
    "another archive behind the end": (lambda data: data + data, "another end"),
    "no end": (lambda data: data[:-1024], "something else"),
    "half an end": (lambda data: data[:-512], "another end"),
    "cut off": (lambda data: data[: len(data) // 2], "cut off|something else"),
    "cut off in a header": (lambda data: data[:300], "something else"),
    "a file in place of a folder": (added(entry("golden")), "nothing in it lists it"),
    "name is no text": (lambda data: with_header(data, GRAPH, lambda h: h.__setitem__(0, 0xFF)), "something else"),
    "too many": (
        lambda data: joined([entry(f"{number:08d}", b"") for number in range(archive.MOST_MEMBERS + 1)]), "too many",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_we_would_not_have_written_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    make, match = HOSTILE[name]
    (tmp_path / "hostile.damp").write_bytes(make(packed.read_bytes()))
    for way in (lambda file: unpack(file, tmp_path / "out", replace=False), check):
        with pytest.raises(BundleError, match=match) as caught:
            way(tmp_path / "hostile.damp")
        assert str(caught.value.file).startswith(str(tmp_path / "hostile.damp")) and caught.value.remedy
        assert str(caught.value).isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.damp"] and not (tmp_path.parent / "stranger").exists()


NAMED = {
    "link": GRAPH, "sparse": GRAPH, "other mode": GRAPH, "traversal": "../stranger", "folder": "graphs",
    "absolute by its prefix": "/etc/zz", "unlisted": "stranger", "size of 8 GiB": GRAPH, "larger than it was": GRAPH,
    "a signature that is too large": MANIFEST_SIGNED, "twice": GRAPH, "engine missing": "engine/1.plan",
    "something between files": "golden/metrics.npy", "noise": None, "cut off in a header": None,
    "name is no text": None, "other sum": None, "half an end": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_the_member_that_is_wrong_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "hostile.damp").write_bytes(HOSTILE[name][0](packed.read_bytes()))
    for way in (
        check,
        lambda file: install(file, tmp_path / "store"),
        lambda f: unpack(f, tmp_path / "o", replace=False),
    ):
        with pytest.raises(BundleError) as caught:
            way(tmp_path / "hostile.damp")
        assert (caught.value.file, caught.value.key) == (str(tmp_path / "hostile.damp"), NAMED[name])


def test_a_member_that_no_folder_takes_is_named(tmp_path: Path) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    pack(bundle, tmp_path / "b.damp")
    inside = "golden/metrics.npy/inside"
    data = (tmp_path / "b.damp").read_bytes()

    def list_inside(content: dict[str, dict[str, object]]) -> None:
        content["files"][inside] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}

    reseal(bundle, list_inside)
    manifest = entry(MANIFEST, (bundle / MANIFEST).read_bytes(), mode=0o644)
    hostile = added(entry(inside, mode=0o644))(replaced(MANIFEST, manifest)(data))
    (tmp_path / "b.damp").write_bytes(hostile)
    check(tmp_path / "b.damp")
    with pytest.raises(BundleError, match="cannot be written") as caught:
        unpack(tmp_path / "b.damp", tmp_path / "out", replace=False)
    assert caught.value.file == str(tmp_path / "out" / inside) and not (tmp_path / "out").exists()


def test_every_flipped_byte_of_an_archive_is_found(packed: Path, ring: Trust, tmp_path: Path) -> None:
    data, file = packed.read_bytes(), tmp_path / "flipped.damp"
    for place in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        # Of a signature's file the first line is not signed: minisign calls it untrusted.
        if (
            b"untrusted comment: " in data[place - 80 : place + 80]
            or b"signature from" in data[place - 80 : place + 80]
        ):
            continue
        with pytest.raises(BundleError):
            check(file, ring)


def test_what_is_no_file_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, match in (("pipe", "not a regular file"), ("missing", "No such file")):
        with pytest.raises(BundleError, match=match):
            check(tmp_path / name)
    with pytest.raises(BundleError, match="is not a bundle"):
        check(tmp_path / "folder")
    with pytest.raises(BundleError, match="is a folder"):
        unpack(tmp_path / "folder", tmp_path / "out", replace=False)


def test_an_archive_that_nobody_trusted_signed_writes_nothing(packed: Path, tmp_path: Path) -> None:
    ring = keyring(tmp_path / "others", new_key())
    with pytest.raises(BundleError, match="not trusted here") as caught:
        unpack(packed, tmp_path / "out", replace=False, trust=ring)
    assert caught.value.file == str(packed / MANIFEST)
    assert [p.name for p in tmp_path.iterdir()] == ["others"]


def test_content_that_is_not_what_was_built_writes_nothing(packed: Path, tmp_path: Path) -> None:
    members = [(n, h, b"y" + c[1:] if n == GRAPH else c) for n, h, c in parts(packed.read_bytes())]
    (tmp_path / "other.damp").write_bytes(joined(members))
    with pytest.raises(BundleError, match="SHA-256 differs") as caught:
        unpack(tmp_path / "other.damp", tmp_path / "out", replace=False)
    assert caught.value.file == str(tmp_path / "other.damp" / GRAPH)
    assert [p.name for p in tmp_path.iterdir()] == ["other.damp"]


# In its place


def test_nothing_is_replaced_unasked(packed: Path, tmp_path: Path) -> None:
    before = known_bundle(tmp_path / "out")
    held = files_of(before)
    with pytest.raises(BundleError, match="exists already"):
        unpack(packed, before, replace=False)
    assert files_of(before) == held and [p.name for p in tmp_path.iterdir()] == ["out"]
    unpack(packed, before, replace=True)
    assert (before / "made.json").is_file() and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_stop_at_any_moment_leaves_the_one_before_whole(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = known_bundle(tmp_path / "out")
    held, sync, stopped = files_of(out), os.fsync, 0
    for stop in range(40):
        calls = 0

        def stopping(descriptor: int, most: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls > most:
                raise KeyboardInterrupt
            sync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", stopping)
            try:
                unpack(packed, out, replace=True)
                break
            except KeyboardInterrupt:
                stopped += 1
        assert verified_bundle(out).made or files_of(out) == held
    assert stopped > 10 and verified_bundle(out).made


def test_a_full_disk_is_told_and_leaves_nothing(
    bundle: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left") as caught:
        unpack(packed, tmp_path / "out", replace=False)
    assert caught.value.file == str(tmp_path / "out" / "engine" / "1.layers.json")
    with pytest.raises(InputError, match="No space left"):
        pack(bundle, tmp_path / "out.damp")
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    bundle = for_a_board(tmp_path / "large")
    give_engine(bundle, data=bytes(64 << 20))
    tracemalloc.start()
    try:
        pack(bundle, tmp_path / "large.damp")
        check(tmp_path / "large.damp")
        check(bundle)
        unpack(tmp_path / "large.damp", tmp_path / "out", replace=False)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 << 20
    assert bundle_files.verified_bundle(tmp_path / "out").files["engine/1.plan"] == bytes(64 << 20)


def test_a_sparse_archive_of_a_petabyte_is_refused_at_once(packed: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(packed, tmp_path / "sparse.damp"))
    try:
        os.truncate(file, 1 << 42)
    except OSError:
        pytest.skip("this file system has no such files")
    with pytest.raises(DeployError, match="another end"):
        check(file)


def test_headers_are_what_tarfile_writes() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as opened:
        info = tarfile.TarInfo("a" * 90 + "/" + "b" * 90)
        info.size = 3
        opened.addfile(info, io.BytesIO(b"abc"))
    header = buffer.getvalue()[:BLOCK]
    assert archive._named(header) == ("a" * 90 + "/" + "b" * 90, 3)
