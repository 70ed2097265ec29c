"""Finalising on the target over ssh: copy the bundle there, build and prove its engine, fetch it back as a stranger's.

Nothing of the other side is believed: what comes back is a bounded archive of plain files and must be a whole bundle,
with the very manifest that was sent; only what its `made.json` lists is kept. Nothing is left there: a process on the
target keeps the folder; as soon as our end of its connection is gone, it ends the build and removes the folder.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from runtime.bundle_files import MADE_SIGNED, install_made, replaceable_bundle, verified_bundle
from runtime.errors import BundleError, DeployError, GateError, InputError, MachineError
from runtime.made import MADE, Made
from runtime.manifest import LARGEST_PART, MANIFEST

from .. import console

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,254}")
FOLDER = re.compile(r"/[A-Za-z0-9_./-]{1,200}")
OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
)
LARGEST_ANSWER = 1 << 20
LARGEST_TALK = 4 << 20
MOST_LINES, LARGEST_SHOWN = 2000, 1 << 19
"""Lines, and bytes of them, that are shown of what it says while it builds: each costs us more than it costs there."""
TEXT_LIMIT = 4096
MOST_MEMBERS = 1000
LONGEST_NAME = 255
LOOK = "look at the target's installation"
GRACE = 10
"""Seconds that a build there has to end by itself before it is killed."""
KEEPER = (
    'trap "" HUP INT PIPE TERM; p=$(mktemp -d -t damp-deploy-XXXXXXXX) || exit; echo "$p"; cat >/dev/null; '
    'exec 2>/dev/null; k() { kill "-$1" "-$g" || kill "-$1" "$g"; }; e() { read -r g <"$p/group" && k TERM && '
    '{ n=0; while k 0 && [ "$n" -lt "$1" ]; do sleep 1; n=$((n+1)); done; k KILL; }; rm -rf -- "$p"; }; '
    # What was named there while it was removed is ended, too.
    'e "$1"; m=0; while [ -e "$p" ] && [ "$m" -lt 5 ]; do sleep 1; m=$((m+1)); e "$1"; done'
)
"""For any POSIX shell, with the grace in seconds: makes a folder, prints it, and when standard input ends ends the
process group that `STARTER` named there, then removes the folder."""
STARTER = (
    'p=$1; shift; s=; command -v setsid >/dev/null && s=setsid; $s "$@" </dev/null & '
    'echo "$!" >"$p/g" && mv "$p/g" "$p/group" || kill -TERM "$!"; wait "$!"; c=$?; rm -f "$p/group"; exit "$c"'
)
"""Runs a command as a process group that `KEEPER`, whose folder comes first, knows; without setsid as a process."""


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
    # Pilots point a link at one of two bundles: the one behind it is meant, now and when the engine is back.
    here = Path(os.path.realpath(folder))
    sent = replaceable_bundle(here) if "--rebuild" in flags else verified_bundle(here)
    with _remote_folder(remote) as place:
        bundle = f"{place}/bundle"
        with console.progress(f"copying the bundle to {remote.host}"):
            _ssh(remote, ["mkdir", bundle])
            _ssh(remote, ["tar", "-xf", "-", "-C", bundle], feed=_packed(sent.files))
        answer = _finalize_there(remote, place, flags)
        with console.progress(f"fetching the bundle from {remote.host}"):
            limit = min(2 * LARGEST_PART, sum(map(len, sent.files.values())) * 8 + (1 << 28))
            archive = _ssh(remote, ["tar", "-cf", "-", "-C", bundle, "."], limit=limit)
    fetched = here.with_name(f".{here.name}.fetched")
    shutil.rmtree(fetched, ignore_errors=True)
    try:
        _unpack(archive, fetched)
        back = verified_bundle(fetched)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    made = back.made
    if made is None or back.files[MANIFEST] != sent.files[MANIFEST]:
        problem = "the bundle that came back is not the one that was sent with its engine"
        raise BundleError(problem, file=folder, remedy=f"nothing was changed here; {LOOK}")
    _refuse_unproved(made, folder)
    engine = {name: back.files[name] for name in made.files}
    install_made(here, sent, back.files[MADE], back.files.get(MADE_SIGNED), engine)
    return {**answer, "bundle": str(folder), "remote": remote.host}


def _refuse_unproved(made: Made, folder: Path) -> None:
    """Raise BundleError where the target does not say that the engine restored the golden frame there."""
    off, tolerance = made.proof.get("golden_difference"), made.choice.tolerance
    # True is an int, and no figure.
    if not isinstance(off, int | float) or isinstance(off, bool) or not 0 <= off <= tolerance:
        raise BundleError(
            "the engine that came back was not proved on the golden frame",
            file=folder,
            key="golden_difference",
            value=off,
            remedy=f"at most {tolerance:g}; nothing was changed here; {LOOK}",
        )


class _Listener(threading.Thread):
    """Reads all that ssh says on standard error, shows it if asked to, and kills it where it says too much.

    Attributes:
        heard: bytes so far.
        too_much: it said more than `LARGEST_TALK`, or more than is shown.
        last: the last line that was not empty, at most `TEXT_LIMIT` bytes of it.
    """

    def __init__(self, child: subprocess.Popen[bytes], host: str, *, show: bool) -> None:
        super().__init__(daemon=True)
        self.heard, self.last, self.too_much = 0, "", False
        self._lines = 0
        self._child, self._host, self._show = child, host, show

    def run(self) -> None:
        assert self._child.stderr is not None
        for line in iter(partial(self._child.stderr.readline, TEXT_LIMIT), b""):
            self.heard += len(line)
            self._lines += 1
            most = LARGEST_SHOWN if self._show else LARGEST_TALK
            self.too_much = self.heard > most or (self._show and self._lines > MOST_LINES)
            if self.too_much:
                self._child.kill()
                return
            text = line.decode("utf-8", "replace").rstrip()
            self.last = text.strip() or self.last
            if self._show and text:
                # Where nobody reads us any more, the other side still must not wait for its words to be taken.
                with suppress(BrokenPipeError):
                    console.say(f"{self._host}: {text}")


@contextmanager
def _connected(
    remote: Remote, words: list[str], *, show: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], _Listener]]:
    """ssh with one command there, ended with the block."""
    config = ["-F", str(remote.ssh_config)] if remote.ssh_config else []
    options = [word for option in OPTIONS for word in ("-o", option)]
    child = subprocess.Popen(
        ["ssh", *config, *options, "-T", "--", remote.host, shlex.join(words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A terminal's Ctrl-C is for us: the connection that tidies up must outlive it.
        start_new_session=True,
    )
    listener = _Listener(child, remote.host, show=show)
    try:
        listener.start()
        yield child, listener
    finally:
        child.kill()
        child.wait()
        # A proxy that ssh started can hold the pipe a little longer.
        listener.join(5)


def _asked(
    remote: Remote, words: list[str], *, feed: bytes = b"", limit: int = LARGEST_ANSWER, show: bool = False
) -> tuple[int, bytes, str]:
    """Run one command there: its exit code, its output, the last line that it said.

    Raises BundleError where the output has more than `limit` bytes, or it says too much.
    """
    with _connected(remote, words, show=show) as (child, listener):
        assert child.stdin is not None and child.stdout is not None
        threading.Thread(target=_write, args=(child.stdin, feed), daemon=True).start()
        data = child.stdout.read(limit + 1)
        code = child.wait() if len(data) <= limit else -1
    if len(data) > limit or listener.too_much:
        raise BundleError(
            "the target sends more than there can be to send",
            key=remote.host,
            value=max(len(data), listener.heard),
            remedy="look at the target",
        )
    return code, data, listener.last


def _ssh(remote: Remote, words: list[str], *, feed: bytes = b"", limit: int = LARGEST_ANSWER) -> bytes:
    """Run one command there; its output, at most `limit` bytes."""
    code, data, said = _asked(remote, words, feed=feed, limit=limit)
    if code:
        raise _failed(remote, words[0], code, said)
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
    if code == 255:
        remedy = f"make `ssh {remote.host}` work without a question: its key accepted, its host key known"
        return MachineError("cannot be reached over ssh", key=remote.host, value=said or None, remedy=remedy)
    return MachineError(
        f"`{what}` failed there (exit {code})", key=remote.host, value=said or None, remedy="look there"
    )


@contextmanager
def _remote_folder(remote: Remote) -> Iterator[str]:
    """A temporary folder there. However we or the connection end, a build in it is ended and then it is removed."""
    with _connected(remote, ["sh", "-c", KEEPER, "sh", str(GRACE)]) as (keeper, listener):
        assert keeper.stdout is not None
        place = keeper.stdout.readline(TEXT_LIMIT).decode("utf-8", "replace").strip()
        if not place:
            raise _failed(remote, "mktemp", _let_go(keeper) or 70, _last(listener))
        try:
            if not FOLDER.fullmatch(place) or ".." in place:
                raise MachineError(
                    "the target names a strange folder", key=remote.host, value=place, remedy="set TMPDIR there"
                )
            yield place
        finally:
            code = _let_go(keeper)
            if code:
                console.warn(f"{place} may be left on {remote.host}: {_last(listener) or f'exit {code}'}")


def _let_go(keeper: subprocess.Popen[bytes]) -> int:
    """End the keeper's standard input; its exit code once it has tidied up."""
    assert keeper.stdin is not None
    with suppress(BrokenPipeError):
        keeper.stdin.close()
    try:
        return keeper.wait(GRACE + 20)
    except subprocess.TimeoutExpired:
        return -1


def _last(listener: _Listener) -> str:
    listener.join(1)
    return listener.last


def _finalize_there(remote: Remote, place: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """Run `deploy finalize` there on the bundle in `place`, its words shown here as they come."""
    command = shlex.split(remote.command)
    words = [*command, "finalize", f"{place}/bundle", *flags, "--json"]
    code, out, last = _asked(remote, ["sh", "-c", STARTER, "sh", place, *words], show=True)
    try:
        answer = json.loads(out.decode("utf-8").strip().splitlines()[-1])
        # It becomes part of our own answer, which holds finite numbers only.
        json.dumps(answer, allow_nan=False)
        error = answer.get("error") if code else None
    except (ValueError, IndexError, AttributeError, RecursionError) as problem:
        raise _failed(remote, command[0], code or 70, last) from problem
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


def _packed(files: Mapping[str, bytes]) -> bytes:
    """The bundle's files as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _unpack(data: bytes, folder: Path) -> None:
    """Write the plain files of an archive below `folder`, together no larger than it is.

    Raises BundleError for anything else in it.
    """
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for count, member in enumerate(archive, 1):
                name = member.name.removeprefix("./")
                total += member.size
                if count > MOST_MEMBERS or not 0 <= member.size <= len(data) or total > len(data):
                    raise BundleError("the target sends more than a bundle holds", value=name, remedy=LOOK)
                if member.isdir():
                    continue
                # A sparse file calls itself a regular one, and its size is whatever it says.
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                parts = name.split("/")
                if not plain or len(name) > LONGEST_NAME or any(p in ("", ".", "..") for p in parts):
                    raise BundleError("the target sends what is no plain file", value=name, remedy=LOOK)
                content = archive.extractfile(member)
                assert content is not None
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    except (BundleError, MemoryError):
        raise
    # A header that is not what it should be makes tarfile raise almost anything.
    except Exception as error:
        raise BundleError(
            "what the target sends is damaged", value=error, remedy="run the same command again"
        ) from error
