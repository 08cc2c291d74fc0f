"""SSH servers on loopback: OpenSSH where it is installed, and asyncssh in this process."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.remotes.servers import SECONDS, Remote, object_name

SSHD = "/usr/sbin/sshd"
SFTP_SERVERS = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")


class _Ssh(Remote):
    """A folder behind SSH: readers give DVC every setting, those who push have ~/.ssh/config."""

    def __init__(self, folder: Path, port: int) -> None:
        user, key, store = getpass.getuser(), folder / "id_ed25519", folder / "store"
        settings = {"port": str(port), "user": user, "keyfile": str(key)}
        super().__init__(store, {"url": f"ssh://127.0.0.1{store}", **settings})
        self.pushing = {"url": f"ssh://store{store}"}
        self.login = f"HostName 127.0.0.1\nPort {port}\nUser {user}\nIdentityFile {key}\n"

    def configure(self, project, pushes=True):
        super().configure(project, pushes)
        if pushes:
            folder = Path(project.environ["HOME"]) / ".ssh"
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / "config").write_text(f"Host store\n{self.login}")


def make_key(path: Path) -> Path:
    """Write an SSH key without a passphrase, and its public part beside it."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(path)
    key.write_public_key(f"{path}.pub")
    path.chmod(0o600)
    return path


def sftp_server() -> str | None:
    """Return OpenSSH's program for SFTP, where sshd and it are installed."""
    found = shutil.which("sftp-server", path=os.pathsep.join(SFTP_SERVERS))
    return found if Path(SSHD).exists() else None


class _Sshd(_Ssh):
    """A folder behind OpenSSH, whose SFTP server logs what it read."""

    def sent(self):
        log = self.store.parent / "sftp.log"
        lines = re.findall(r'close "(.*)" bytes read (\d+) written', log.read_text())
        log.write_text("")
        read = [(object_name(path), int(count)) for path, count in lines if int(count)]
        return [(name, count) for name, count in read if name]


@contextmanager
def sshd(folder: Path) -> Iterator[_Sshd]:
    """OpenSSH's server with a host key, a configuration and one authorised key of its own."""
    make_key(folder / "host_key")
    shutil.copyfile(f"{make_key(folder / 'id_ed25519')}.pub", folder / "authorized_keys")
    if os.geteuid() == 0:  # where the service has never started; sshd asks for it as root
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    (folder / "sftp.log").touch()
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"""
        ListenAddress 127.0.0.1
        Port {port}
        HostKey {folder / "host_key"}
        AuthorizedKeysFile {folder / "authorized_keys"}
        PidFile none
        AuthenticationMethods publickey
        PermitRootLogin prohibit-password
        StrictModes no
        UsePAM no
        Subsystem sftp {sftp_server()} -e -l INFO 2>>{folder / "sftp.log"}
        """
    )
    command = [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    process = subprocess.Popen(command)
    try:
        _wait_for(port, process, folder / "sshd.log")
        yield _Sshd(folder, port)
    finally:
        process.terminate()
        process.wait(SECONDS)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"sshd did not start: {log.read_text()}")
        time.sleep(0.01)


@contextmanager
def asyncssh(folder: Path) -> Iterator[Remote]:
    """An SSH server in this process, for where OpenSSH is missing, and to stop clients half-way."""
    import asyncssh as ssh

    make_key(folder / "host_key")
    shutil.copyfile(f"{make_key(folder / 'id_ed25519')}.pub", folder / "authorized_keys")

    class Counting(ssh.SFTPServer):
        def read(self, file_obj, offset, size):
            data = super().read(file_obj, offset, size)
            name, end = object_name(os.fsdecode(file_obj.name)), offset + len(data)
            if name and data and end == os.fstat(file_obj.fileno()).st_size:
                remote.served.append((name, end))
            return data

        async def write(self, file_obj, offset, data):
            if not await asyncio.to_thread(remote.gate.enter):
                raise ssh.SFTPConnectionLost("refused")
            written = super().write(file_obj, offset, data)
            remote.gate.leave()
            return written

    async def listen():
        return await ssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[str(folder / "host_key")],
            authorized_client_keys=str(folder / "authorized_keys"),
            sftp_factory=Counting,
        )

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(SECONDS)
    remote = _Ssh(folder, server.get_port())
    try:
        yield remote
    finally:
        remote.gate.open()
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(SECONDS)
