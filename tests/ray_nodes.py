"""A Ray cluster for tests: nodes on loopback addresses, that can be killed one by one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.project import HEARS

QUICK = {  # of a node: to notice sooner that another is gone
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
}
ROOT = Path(__file__).parents[1]
MEMORY = 100_000_000  # of a node's object store, in bytes


class Nodes:
    """Nodes of one machine, each with its own loopback address and one CPU.

    Parameters
    ----------
    count : int
        Nodes besides the head, which computes nothing.
    """

    def __init__(self, count: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-")  # names of sockets are short
        with socket.socket() as free:
            free.bind(("127.0.0.2", 0))
            self.address = f"127.0.0.2:{free.getsockname()[1]}"
        self._nodes: dict[int, subprocess.Popen] = {}
        port = self.address.partition(":")[2]
        self._start(2, "--head", "--port", port, "--include-dashboard=false", cpus=0)
        self.wait(0)
        for number in range(3, 3 + count):  # one by one: at once, they choose the same ports
            self.start(number)
            self.wait(number - 2)

    def start(self, number: int) -> None:
        """Start the node 127.0.0.<number>."""
        self._start(number, "--address", self.address)

    def _start(self, number: int, *words: str, cpus: int = 1) -> None:
        self._nodes[number] = subprocess.Popen(
            [
                *("ray", "start", "--block", *words, "--num-cpus", str(cpus)),
                *("--node-ip-address", f"127.0.0.{number}"),
                *("--object-store-memory", str(MEMORY), "--disable-usage-stats"),
                *(("--temp-dir", self._folder) if "--head" in words else ()),
            ],
            env={**os.environ, **QUICK},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self, count: int) -> None:
        """Wait until that many CPUs have joined."""
        script = f"""
import ray, time
while not ray.is_initialized():
    try:
        ray.init(address="{self.address}", log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        time.sleep(0.5)
while ray.cluster_resources().get("CPU", 0) < {count}:
    time.sleep(0.1)
"""
        environ = {**os.environ, **QUICK, "RAY_raylet_start_wait_time_s": "60"}
        subprocess.run(["python", "-c", script], check=True, timeout=120, env=environ)

    def kill(self, number: int) -> None:
        """Kill a node with -9: its raylet and workers."""
        node = self._nodes.pop(number)
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        """Kill all nodes."""
        for number in list(self._nodes):
            self.kill(number)
        shutil.rmtree(self._folder, ignore_errors=True)

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of a driver that uses these nodes."""
        own = {"ISODENSE_EXECUTOR": "ray", "RAY_ADDRESS": self.address, "CI": "1"}
        own["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        return {**os.environ, **QUICK, **own, **more}


def script(folder: Path, text: str, environ: dict[str, str]) -> subprocess.Popen:
    """Start a Python script, which hears SIGINT even where the tests run in the background."""
    path = folder / "driver.py"
    path.write_text(HEARS + text, encoding="utf-8")
    return subprocess.Popen(
        ["python", path],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
