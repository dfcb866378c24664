"""Processes that stand in one gloo group for a whole session of tests: importing torch anew for each test is dear."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

import cloudpickle

PATIENCE = 120.0  # seconds that one call may take


class RankError(AssertionError):
    """A function failed on a rank; the text is that rank's traceback."""


class Pool:
    """`pool(function, *args)` calls a function on every rank at once and returns what it returns, by rank.

    The function travels by value, so that it may stand in a test module, nested or not. Where it fails on one rank,
    the others may wait in a collective for ever: the processes are ended then, and the next call starts new ones.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []

    def __call__(self, function: Callable[..., Any], *args: Any, **named: Any) -> list[Any]:
        """Call it on every rank.

        Raises:
            RankError: It failed on a rank: the first that did, or it took longer than `PATIENCE`.
        """
        module = sys.modules.get(function.__module__)
        by_value = module is not None and not function.__module__.startswith("nbllm")
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            message = cloudpickle.dumps((function, args, named))
        finally:
            if by_value:
                cloudpickle.unregister_pickle_by_value(module)
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send_bytes(message)
        results: dict[int, Any] = {}
        while len(results) < self.size:
            waiting = {c: rank for rank, c in enumerate(self._connections) if rank not in results}
            ready = wait(list(waiting), timeout=PATIENCE)
            if not ready:
                self.close()
                raise RankError(f"Ranks {sorted(waiting.values())} have not answered in {PATIENCE:.0f} s.")
            for connection in ready:
                rank = waiting[connection]
                try:
                    good, value = cloudpickle.loads(connection.recv_bytes())
                except EOFError:
                    good, value = False, f"the process ended with exit code {self._processes[rank].wait()}"
                if not good:
                    self.close()
                    raise RankError(f"on rank {rank} of {self.size}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(self.size)]

    def _start(self) -> None:
        key = secrets.token_bytes(16)
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "RANK_POOL_KEY": key.hex(),
        }
        folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        with Listener(authkey=key) as listener:
            for rank in range(self.size):
                command = [sys.executable, __file__, str(rank), str(self.size), str(folder), listener.address]
                self._processes.append(subprocess.Popen(command, env=environment))
            by_rank = {}
            for _ in range(self.size):
                connection = listener.accept()
                by_rank[connection.recv()] = connection
        self._connections = [by_rank[rank] for rank in range(self.size)]

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes, self._connections = [], []


def serve(rank: int, size: int, folder: Path, address: str) -> None:
    """Answer calls as one rank, until the other end closes."""
    connection = Client(address, authkey=bytes.fromhex(os.environ.pop("RANK_POOL_KEY")))
    connection.send(rank)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, args, named = cloudpickle.loads(connection.recv_bytes())
            try:
                torch.manual_seed(0)
                answer = cloudpickle.dumps((True, function(*args, **named)))
            except BaseException:
                answer = cloudpickle.dumps((False, traceback.format_exc()))
            connection.send_bytes(answer)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
