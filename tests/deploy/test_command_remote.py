"""Finalising over ssh, against a real sshd: what comes back is verified like a stranger's, and nothing stays there."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.finalizing import remote
from runtime.bundle_files import MADE_SIGNED, MANIFEST_SIGNED, read_manifest, verified_bundle
from runtime.engines.tensorrt_libraries import tensorrt_version
from runtime.errors import BundleError, MachineError
from runtime.made import MADE
from runtime.manifest import MANIFEST
from runtime.secret_key import new_key
from runtime.trust import VARIABLE
from tests.contracts.bundles import for_a_board, give_engine, known_bundle, reseal
from tests.contracts.command import Done, command_line, invoke
from tests.contracts.device import CONFIG, TARGET
from tests.contracts.signed import keyring
from tests.contracts.sshd import SSHD, running_sshd
from tests.deploy.test_command_engines import contents

ROOT = Path(__file__).parents[2]
DEVICE = f"env PYTHONPATH='{ROOT}' '{sys.executable}' -m tests.contracts.device"
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="OpenSSH is not installed")
needs_rtx = pytest.mark.skipif(tensorrt_version("tensorrt-rtx") is None, reason="the extra `rtx` is not installed")


@pytest.fixture(scope="module")
def ssh_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as config:
        yield config


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without its engine. To be read."""
    from deploy.building.build import build
    from deploy.config import load_config, with_overrides

    folder = tmp_path_factory.mktemp("built")
    (folder / "deploy.yaml").write_text(CONFIG)
    flags = {"model.checkpoint": str(tiny_checkpoint), "target": TARGET, "input.frame": "64x64", "input.overlap": 16}
    build(with_overrides(load_config(folder / "deploy.yaml"), flags), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def finalize(capsys: Capture, bundle: Path, config: Path, host: str = "device", command: str = DEVICE) -> Done:
    options = ("--remote", host, "--remote-command", command, "--ssh-config", config, "--json")
    return invoke(capsys, "finalize", bundle, *options)


@needs_rtx
def test_the_engine_is_built_there_and_fetched_back(capsys: Capture, bundle: Path, ssh_config: Path) -> None:
    before = contents(bundle)
    link = bundle.parent / "current"
    link.symlink_to("bundle")
    done = finalize(capsys, link, ssh_config)
    assert done.code == 0 and done.json["remote"] == "device" and 0 < done.json["golden_difference"] < 0.05
    assert "device: builder    tensorrt-rtx" in done.err
    made = verified_bundle(bundle).made
    assert made is not None and made.proof["golden_difference"] == done.json["golden_difference"]
    after = contents(bundle)
    assert {n: d for n, d in after.items() if n in before} == before
    assert set(after) - set(before) == {"made.json", *made.files}
    assert link.is_symlink() and {p.name for p in bundle.parent.iterdir()} == {"bundle", "current"}
    assert not list(Path("/tmp").glob("damp-deploy-*/bundle"))


@pytest.mark.slow
@needs_rtx
def test_build_does_all_of_it(capsys: Capture, tiny_checkpoint: Path, tmp_path: Path, ssh_config: Path) -> None:
    (tmp_path / "deploy.yaml").write_text(CONFIG + f"target: {TARGET}\n")
    options = ("--size", "64x64", "--overlap", "16", "--config", tmp_path / "deploy.yaml", "--out", tmp_path / "b")
    there = ("--remote", "device", "--remote-command", DEVICE, "--ssh-config", ssh_config)
    done = invoke(capsys, "build", "--checkpoint", tiny_checkpoint, *options, *there, "--json")
    assert done.code == 0 and done.json["deferred"] is None and (tmp_path / "b" / done.json["engine"]).is_file()


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("spoilt", 1, "does not restore the golden frame"),
        ("tampered", 2, "is not the one that was sent"),
        ("unmade", 2, "is not the one that was sent"),
        ("link", 2, "no plain file"),
    ],
)
def test_what_goes_wrong_there_changes_nothing_here(
    capsys: Capture, bundle: Path, ssh_config: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: int, says: str
) -> None:
    before = contents(bundle)
    monkeypatch.setenv("DEVICE_FAULT", fault)
    done = finalize(capsys, bundle, ssh_config)
    assert done.code == code and says in done.json["error"]["message"]
    assert contents(bundle) == before and [p.name for p in bundle.parent.iterdir()] == ["bundle"]
    assert verified_bundle(bundle).made is None


def test_unreachable_and_unknown_hosts_are_told_in_one_line(capsys: Capture, tmp_path: Path, ssh_config: Path) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    unknown = finalize(capsys, bundle, ssh_config, host="stranger")
    assert unknown.code == 3 and "cannot be reached" in unknown.json["error"]["message"]
    assert "host key" in unknown.json["error"]["remedy"]
    absent = finalize(capsys, bundle, ssh_config, command="no-such-program")
    assert absent.code == 3 and "no-such-program" in absent.json["error"]["message"]
    for host in ("-oProxyCommand=touch /tmp/x", "", "a b", "a;b"):
        refused = finalize(capsys, bundle, ssh_config, host=host)
        assert refused.code == 2 and refused.json["error"]["key"] == "--remote"


BUILDER = "echo started $$ $2 >&2; sleep 60 & wait"
"""For sh, in place of `deploy`: says its process group and the bundle, and stays with a child of its own."""


def gone(group: int, folder: Path) -> bool:
    """The process group and the folder have gone, or go within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            if not folder.exists():
                return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda process: process.send_signal(signal.SIGINT), 130),
        pytest.param(lambda process: process.send_signal(signal.SIGTERM), 130, marks=pytest.mark.slow),
        pytest.param(lambda process: process.kill(), -signal.SIGKILL, marks=pytest.mark.slow),
        (lambda process: [os.kill(pid, signal.SIGKILL) for pid in children(process.pid)], 3),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGKILL", "connection lost"],
)
def test_a_build_there_ends_with_us_or_the_connection_and_its_folder_goes_after_it(
    tmp_path: Path, ssh_config: Path, end: Callable[[subprocess.Popen[str]], object], code: int
) -> None:
    bundle = known_bundle(tmp_path / "bundle")
    command = ("--remote-command", shlex.join(["sh", "-c", BUILDER, "deploy"]), "--ssh-config", ssh_config)
    process = subprocess.Popen(
        command_line("finalize", bundle, "--remote", "device", *command), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[:2] == ["device:", "started"]
    group, folder = int(words[2]), Path(words[3]).parent
    try:
        assert folder.is_dir() and len(children(process.pid)) == 2
        end(process)
        assert process.wait(20) == code
        assert gone(group, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    assert read_manifest(bundle) and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def children(pid: int) -> list[int]:
    """The processes that a process's first thread started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("shell", ["sh", "dash", "bash --posix", "busybox sh"])
@pytest.mark.parametrize("setsid", [True, False], ids=["setsid", "without setsid"])
def test_what_does_not_end_there_is_killed_whatever_the_shell(tmp_path: Path, shell: str, setsid: bool) -> None:
    words = shell.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    tools = ("cat", "mktemp", "mv", "rm", "sh", "sleep", *(["setsid"] if setsid else []))
    for tool in (*tools, words[0]):
        if not (tmp_path / tool).exists():
            (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    env = {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    keeper = subprocess.Popen(
        [*words, "-c", remote.KEEPER, "sh", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    folder = Path(keeper.stdout.readline().strip())
    assert folder.parent == tmp_path
    start = [*words, "-c", remote.STARTER, "sh", str(folder)]
    done = subprocess.run([*start, "sh", "-c", "echo $0 $1; exit 7", "a b", "c"], capture_output=True, env=env)
    assert (done.returncode, done.stdout) == (7, b"a b c\n") and not list(folder.iterdir())
    assert subprocess.run([*start, "no-such-program"], capture_output=True, env=env).returncode == 127
    stubborn = "trap '' TERM; echo $$; while :; do sleep 0.2; done"
    with subprocess.Popen(
        [*start, "sh", "-c", stubborn], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    ) as b:
        assert b.stdout is not None
        pid = int(b.stdout.readline())
        for _ in range(100):
            if (folder / "group").exists():
                break
            time.sleep(0.02)
        keeper.stdin.close()
        assert keeper.wait(10) == 0 and b.wait(10) == 128 + signal.SIGKILL
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], remote.Remote]]:
    """Puts a shell script in place of ssh, for twenty seconds."""
    program, pid = tmp_path / "bin" / "ssh", tmp_path / "pid"
    timer = threading.Timer(20, lambda: os.kill(int(pid.read_text()), signal.SIGKILL))

    def put(script: str) -> remote.Remote:
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho $$ >{pid}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        timer.start()
        return remote.Remote("device")

    yield put
    timer.cancel()


@pytest.mark.parametrize("talk", ["head -c 300000 /dev/zero", "yes word | head -n 50000"], ids=["no line", "lines"])
def test_what_the_target_says_is_read_to_its_end(fake_ssh: Callable[[str], remote.Remote], talk: str) -> None:
    assert remote._ssh(fake_ssh(f"{talk} >&2; echo done"), ["true"]) == b"done\n"


def test_a_target_that_sends_without_end_is_cut_off(fake_ssh: Callable[[str], remote.Remote]) -> None:
    there = fake_ssh('case "$*" in *finalize*|*answer*) exec cat /dev/zero;; *) exec cat /dev/zero >&2;; esac')
    for ask in (
        lambda: remote._finalize_there(there, "/tmp/x", ()),
        lambda: remote._ssh(there, ["answer"]),
        lambda: remote._ssh(there, ["talk"]),
    ):
        with pytest.raises(BundleError, match="more than there can be to send"):
            ask()


@pytest.mark.parametrize("talk", ["yes", "yes 0123456789 | tr -d '\\n' | fold -w 4000"], ids=["lines", "long lines"])
def test_what_the_target_says_is_shown_within_bounds(
    fake_ssh: Callable[[str], remote.Remote], monkeypatch: pytest.MonkeyPatch, talk: str
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(remote.console, "say", shown.append)
    there = fake_ssh(f"({talk}) >&2; echo '{{}}'")
    with pytest.raises(BundleError, match="more than there can be to send"):
        remote._finalize_there(there, "/tmp/x", ())
    assert 0 < len(shown) <= remote.MOST_LINES and sum(map(len, shown)) <= 2 * remote.LARGEST_SHOWN


@pytest.fixture
def boards(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle for a board, and what is there once its engine was made."""
    here, there = for_a_board(tmp_path / "here"), for_a_board(tmp_path / "there")
    return here, give_engine(there)


def answering(there: Path) -> str:
    """A target that sends the bundle in `there` back, whatever it was sent, for `fake_ssh`."""
    pack = f"exec tar -cf - -C '{there}' ."
    return (
        f'case "$*" in *"tar -cf"*) {pack};; *"tar -xf"*) cat >/dev/null;; *finalize*) echo \'{{"engine": "e"}}\';; '
        "*mkdir*) ;; *) echo /tmp/damp-deploy-none; cat >/dev/null;; esac"
    )


PROOFS = [
    ({"golden_difference": 1e-6}, True), ({"golden_difference": 0}, True), ({"golden_difference": 1e-4}, True),
    ({}, False), ({"golden_difference": None}, False), ({"golden_difference": "0"}, False),
    ({"golden_difference": True}, False), ({"golden_difference": -1e-9}, False), ({"golden_difference": 2e-4}, False),
    ({"golden_difference": [0]}, False), ({"golden_difference": 1e308}, False), ({"golden_difference": 10**400}, False),
]  # fmt: skip


@pytest.mark.parametrize(("proof", "right"), PROOFS)
def test_an_engine_that_nobody_proved_is_not_installed(
    fake_ssh: Callable[[str], remote.Remote], boards: tuple[Path, Path], proof: dict[str, object], right: bool
) -> None:
    here, there = boards
    reseal(there, lambda content: content.update(proof=proof), MADE)
    before, target = contents(here), fake_ssh(answering(there))
    if right:
        assert remote.finalize_remotely(here, target)["remote"] == "device"
        assert contents(here) == contents(there)
        return
    with pytest.raises(BundleError, match=r"was not proved on the golden frame|holds a number that is too large"):
        remote.finalize_remotely(here, target)
    assert contents(here) == before


def test_an_engine_that_comes_back_is_signed_where_there_is_a_keyring(
    fake_ssh: Callable[[str], remote.Remote], boards: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here, there), ground, board = boards, new_key(), new_key()
    for folder in boards:
        (folder / MANIFEST_SIGNED).write_bytes(ground.minisig((folder / MANIFEST).read_bytes(), "told"))
    monkeypatch.setenv(VARIABLE, keyring(tmp_path / "ring", ground, board).place)
    before, target = contents(here), fake_ssh(answering(there))
    with pytest.raises(BundleError, match="is not signed"):
        remote.finalize_remotely(here, target)
    (there / MADE_SIGNED).write_bytes(new_key().minisig((there / MADE).read_bytes(), "told"))
    with pytest.raises(BundleError, match="not trusted here"):
        remote.finalize_remotely(here, target)
    assert contents(here) == before
    (there / MADE_SIGNED).write_bytes(board.minisig((there / MADE).read_bytes(), "told"))
    remote.finalize_remotely(here, target)
    assert contents(here) == contents(there) and verified_bundle(here).made_signed


@pytest.mark.parametrize("answer", ['{"seconds": NaN}', '{"seconds": 1e999}', "[" * 100_000, "[]", "", "1"])
def test_a_strange_answer_is_an_error_of_the_target(fake_ssh: Callable[[str], remote.Remote], answer: str) -> None:
    with pytest.raises(MachineError):
        remote._finalize_there(fake_ssh(f"printf '%s\\n' '{answer}'"), "/tmp/x", ())


def test_ssh_asks_nothing_and_notices_a_connection_that_is_dead(fake_ssh: Callable[[str], remote.Remote]) -> None:
    asked = remote._ssh(fake_ssh('echo "$@"'), ["a b", "c"]).decode()
    assert asked.endswith("-T -- device 'a b' c\n")
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=20", "ServerAliveInterval=15"):
        assert f"-o {option} " in asked


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, size: int, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in more.items():
        setattr(info, key, value)
    return info


def gnu_sparse(real: int) -> bytes:
    """512 bytes that say that they are a file of `real` bytes, as GNU tar writes it."""
    header = bytearray(member("a", 512, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % real
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512 + 1024)


def negative() -> bytes:
    """A file whose size is below zero: reading on from it, some versions of Python never end."""
    header = bytearray(member("a", 0).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


PAX = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": str(1 << 30)}
ARCHIVES = {
    "gnu sparse": lambda: gnu_sparse(1 << 30),
    "pax sparse": lambda: packed((member("a", 1024, pax_headers=PAX), b"1\n0\n512\n".ljust(512, b"\0") + bytes(512))),
    "pax sparse, damaged": lambda: packed((member("a", 512, pax_headers=PAX), b"9" * 512)),
    "negative": negative,
    "larger than all": lambda: member("a", 1 << 33).tobuf(tarfile.PAX_FORMAT) + bytes(4096),
    "too many": lambda: packed(*[(member(f"{i}", 0), b"") for i in range(remote.MOST_MEMBERS + 1)]),
    "deep": lambda: packed((member("a/" * 1000 + "a", 1), b"x")),
    "device": lambda: packed((member("a", 0, type=tarfile.CHRTYPE), b"")),
    "fifo": lambda: packed((member("a", 0, type=tarfile.FIFOTYPE), b"")),
    "hard link": lambda: packed((member("a", 0, type=tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
    "link": lambda: packed((member("a", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
    "contiguous": lambda: packed((member("a", 1, type=tarfile.CONTTYPE), b"x")),
    "outside": lambda: packed((member("../a", 1), b"x")),
    "absolute": lambda: packed((member("/a", 1), b"x")),
    "headers without end": lambda: member("a", 0, type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT) * 5000,
    "noise": lambda: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_is_more_than_its_plain_files_is_refused(tmp_path: Path, archive: Callable[[], bytes]) -> None:
    data = archive()
    with pytest.raises(BundleError):
        remote._unpack(data, tmp_path / "here")
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= len(data)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["here"])


def test_plain_files_are_unpacked(tmp_path: Path) -> None:
    folder = member("./b", 0, type=tarfile.DIRTYPE)
    remote._unpack(packed((member("./a", 3), b"abc"), (folder, b""), (member("./b/c", 0), b"")), tmp_path)
    assert contents(tmp_path) == {"a": b"abc", "b/c": b""}
