"""A real sshd on loopback, with keys of its own and a configuration for the client that knows it."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def running_sshd(folder: Path) -> Iterator[Path]:
    """Start it; yields the client's configuration, in which it is called `device`."""
    assert SSHD is not None
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = folder / "sshd_config"
    server.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nAcceptEnv DEVICE_*\n"
        "PermitRootLogin prohibit-password\n"
    )
    known = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {known[0]} {known[1]}\n")
    client = folder / "ssh_config"
    client.write_text(
        f"Host device stranger\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  SendEnv DEVICE_*\n"
        f"Host device\n  UserKnownHostsFile {folder}/known\nHost stranger\n  UserKnownHostsFile {folder}/nobody\n"
    )
    # As root it insists on this folder for its unprivileged half.
    privileged = Path("/run/sshd")
    if getpass.getuser() == "root":
        privileged.mkdir(exist_ok=True)
    server_process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(server)], stderr=(folder / "log").open("wb"))
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield client
    finally:
        server_process.terminate()
        server_process.wait()
