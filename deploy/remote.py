"""Finalising on the target over ssh: copy the bundle there, build and prove its engine, fetch it back as a stranger's.

Nothing of the other side is believed: what comes back is a bounded archive of plain files, must be a whole bundle, and
must be the bundle that was sent but for its engine.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from runtime.bundle import install_bundle, verified_bundle, write_bundle
from runtime.errors import BundleError, DeployError, GateError, InputError, MachineError
from runtime.manifest import LARGEST_PART, Manifest

from . import console

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,254}")
FOLDER = re.compile(r"/[A-Za-z0-9_./-]{1,200}")
LARGEST_ANSWER = 1 << 20
TEXT_LIMIT = 4096
LOOK = "look at the target's installation"


@dataclass(frozen=True)
class Remote:
    """The target as ssh reaches it.

    Attributes:
        host: `user@host`, or a name of ssh's own configuration.
        command: what runs `deploy` there; split as a shell would, quoted again for the other side.
        ssh_config: another configuration file for ssh.
    """

    host: str
    command: str = "deploy"
    ssh_config: Path | None = None


def parse_remote(host: str, command: str, ssh_config: Path | None) -> Remote:
    """A checked `Remote`. Raises InputError where the host could be an option, or the command cannot be split."""
    if not HOST.fullmatch(host):
        raise InputError("not a host", key="--remote", value=host, remedy="user@host, or a name of ssh's configuration")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError("cannot be split", key="--remote-command", value=command, remedy="close its quotes") from error
    if not words:
        raise InputError("is empty", key="--remote-command", remedy="what runs `deploy` there")
    if shutil.which("ssh") is None:
        raise MachineError("ssh is not installed", key="--remote", remedy="install OpenSSH's client")
    return Remote(host, command, ssh_config)


def finalize_remotely(folder: Path, remote: Remote, *, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Finalise the bundle in `folder` on the target and put the result in its place; returns what the target printed.

    Args:
        folder: a bundle whose engine is deferred.
        remote: the target.
        flags: handed on to `deploy finalize` there.

    Raises:
        GateError: the engine failed its proof there.
        MachineError: ssh, or the build there, failed.
        BundleError: what came back is not the bundle that was sent with its engine.
    """
    manifest, _ = verified_bundle(folder)
    with _remote_folder(remote) as place:
        bundle = f"{place}/bundle"
        with console.progress(f"copying the bundle to {remote.host}"):
            _ssh(remote, ["mkdir", bundle])
            _ssh(remote, ["tar", "-xf", "-", "-C", bundle], feed=_packed(folder, manifest))
        answer = _finalize_there(remote, bundle, flags)
        with console.progress(f"fetching the bundle from {remote.host}"):
            archive = _ssh(remote, ["tar", "-cf", "-", "-C", bundle, "."], limit=_limit(manifest))
    fetched = folder.absolute().with_name(f".{folder.name}.fetched")
    shutil.rmtree(fetched, ignore_errors=True)
    try:
        _unpack(archive, fetched)
        complete, received = verified_bundle(fetched)
        _same_but_for_the_engine(manifest, complete, fetched)
        # Only what the manifest lists is kept, as it was verified.
        shutil.rmtree(fetched)
        write_bundle(fetched, received, complete)
        install_bundle(fetched, folder.absolute(), replace=True)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return {**answer, "bundle": str(folder), "remote": remote.host}


def _base(remote: Remote) -> list[str]:
    config = ["-F", str(remote.ssh_config)] if remote.ssh_config else []
    return ["ssh", *config, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-T", "--", remote.host]


def _ssh(remote: Remote, words: list[str], *, feed: bytes = b"", limit: int = LARGEST_ANSWER) -> bytes:
    """Run one command there; its output, at most `limit` bytes."""
    command = [*_base(remote), shlex.join(words)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    errors: list[bytes] = []
    threads = [
        threading.Thread(target=_write, args=(child.stdin, feed)),
        threading.Thread(target=lambda pipe: errors.append(pipe.read(TEXT_LIMIT)), args=(child.stderr,)),
    ]
    try:
        for thread in threads:
            thread.start()
        data = child.stdout.read(limit + 1)
        if len(data) > limit:
            raise BundleError(
                "the target sends more than a bundle can be",
                key=remote.host,
                value=len(data),
                remedy="look at the target",
            )
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        for thread in threads:
            thread.join()
    if code:
        raise _failed(remote, words[0], code, b"".join(errors).decode("utf-8", "replace"))
    return data


def _write(pipe: IO[bytes], data: bytes) -> None:
    try:
        pipe.write(data)
        pipe.close()
    except BrokenPipeError:
        # The other side says why it went; its exit code is looked at.
        return


def _failed(remote: Remote, what: str, code: int, said: str) -> MachineError:
    """ssh itself ends with 255."""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    if code == 255:
        remedy = f"make `ssh {remote.host}` work without a question: its key accepted, its host key known"
        return MachineError("cannot be reached over ssh", key=remote.host, value=last or None, remedy=remedy)
    return MachineError(
        f"`{what}` failed there (exit {code})", key=remote.host, value=last or None, remedy="look there"
    )


@contextmanager
def _remote_folder(remote: Remote) -> Iterator[str]:
    """A temporary folder there, removed in the end."""
    place = _ssh(remote, ["mktemp", "-d", "-t", "damp-deploy-XXXXXXXX"]).decode("utf-8", "replace").strip()
    if not FOLDER.fullmatch(place) or ".." in place:
        raise MachineError("the target names a strange folder", key=remote.host, value=place, remedy="set TMPDIR there")
    try:
        yield place
    finally:
        try:
            _ssh(remote, ["rm", "-rf", "--", place])
        except DeployError as error:
            console.warn(f"{place} is left on {remote.host}: {error.one_line()}")


def _finalize_there(remote: Remote, bundle: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """Run `deploy finalize` there, its words shown here as they come."""
    words = [*shlex.split(remote.command), "finalize", bundle, *flags, "--json"]
    child = subprocess.Popen(
        [*_base(remote), shlex.join(words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    last: list[str] = []

    def show(pipe: IO[bytes]) -> None:
        for line in pipe:
            last[:] = [line[:TEXT_LIMIT].decode("utf-8", "replace").rstrip()]
            console.say(f"{remote.host}: {last[0]}")

    reader = threading.Thread(target=show, args=(child.stderr,))
    try:
        reader.start()
        out = child.stdout.read(LARGEST_ANSWER)
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        reader.join()
    try:
        answer = json.loads(out.decode("utf-8").strip().splitlines()[-1])
        error = answer.get("error") if code else None
    except (ValueError, IndexError, AttributeError) as problem:
        raise _failed(remote, words[0], code or 70, "\n".join(last)) from problem
    if not code and isinstance(answer, dict):
        return answer
    kind: type[DeployError] = GateError if code == GateError.exit_code else MachineError
    said = error if isinstance(error, dict) else {}
    raise kind(
        f"the target says: {said.get('message', 'failed')}",
        file=remote.host,
        key=str(said["key"]) if said.get("key") else None,
        value=said.get("value"),
        remedy=str(said.get("remedy") or "see its words above"),
    )


def _packed(folder: Path, manifest: Manifest) -> bytes:
    """The bundle's files, and no other, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("manifest.json", *manifest.files):
            archive.add(folder / name, arcname=name, recursive=False)
    return buffer.getvalue()


def _limit(manifest: Manifest) -> int:
    return min(2 * LARGEST_PART, sum(record.bytes for record in manifest.files.values()) * 8 + (1 << 28))


def _unpack(data: bytes, folder: Path) -> None:
    """Write the plain files of an archive below `folder`. Raises BundleError for anything else in it."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                parts = name.split("/")
                if member.isdir():
                    continue
                if not member.isreg() or name.startswith("/") or any(p in ("", ".", "..") for p in parts):
                    raise BundleError("the target sends what is no plain file", value=name, remedy=LOOK)
                content = archive.extractfile(member)
                assert content is not None
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BundleError(
            "what the target sends is damaged", value=error, remedy="run the same command again"
        ) from error


def _same_but_for_the_engine(sent: Manifest, back: Manifest, folder: Path) -> None:
    """Raise BundleError where the target changed more than the engine and its evidence."""

    def rest(manifest: Manifest) -> dict[str, Any]:
        content = manifest.model_dump(mode="json")
        content["evidence"].pop("engine", None)
        made = manifest.engine
        engines = {made.path, made.layers, made.log} if made else set()
        content["files"] = {n: r for n, r in content["files"].items() if n not in engines}
        return {k: v for k, v in content.items() if k not in ("engine", "deferred")}

    wrong = back.engine is None or back.deferred is not None
    if wrong or rest(sent) != rest(back):
        raise BundleError(
            "the bundle that came back is not the one that was sent with its engine",
            file=folder,
            remedy="nothing was changed here; look at the target's installation",
        )
    made = back.engine
    if made is not None and (made.sm != sent.target.sm or made.builder != sent.target.engine):
        raise BundleError(
            "the engine that came back is for another target", file=folder, value=made.sm, remedy="look at the target"
        )
