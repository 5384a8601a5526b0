"""Tests whose body runs in two processes at once, joined by gloo."""

import functools
import importlib
import inspect
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

SIZE = 2
START_TIMEOUT, TIMEOUT = 120.0, 60.0


class Processes:
    """Two workers that run one body after the other. One that fails or hangs costs both their lives; the next body gets new ones."""

    def __init__(self) -> None:
        self._workers: list[tuple[Any, Any]] = []
        self._store = ""

    def run(self, module: str, name: str, arguments: dict[str, Any]) -> None:
        if not self._workers:
            self._start()
        for _, pipe in self._workers:
            pipe.send((module, name, arguments))
        self._all_answer(TIMEOUT)

    def close(self) -> None:
        if not self._workers:
            return
        workers, self._workers = self._workers, []
        for process, pipe in workers:
            pipe.close()
            process.kill()
        for process, _ in workers:
            process.join()
        Path(self._store).unlink(missing_ok=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        # a file that both know, also of groups made later: no port that somebody else could take
        handle, self._store = tempfile.mkstemp(prefix="two_processes_")
        os.close(handle)
        for rank in range(SIZE):
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, pipe))
        self._all_answer(START_TIMEOUT)

    def _all_answer(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        failures = []
        for rank, (_, pipe) in enumerate(self._workers):
            # after one has failed, the other may wait for it for ever
            patience = 2.0 if failures else until - time.monotonic()
            try:
                failure = pipe.recv() if pipe.poll(max(patience, 0.0)) else f"no answer within {timeout:.0f} s"
            except EOFError:
                failure = "the process died"
            if failure:
                failures.append(f"rank {rank}: {failure}")
        if failures:
            self.close()
            pytest.fail("\n".join(failures), pytrace=False)


def _serve(rank: int, store: str, pipe: Any) -> None:
    try:
        torch.set_num_threads(1)
        if sys.platform == "linux":
            # a host's own name need not lead anywhere
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.distributed.init_process_group("gloo", f"file://{store}", timedelta(seconds=TIMEOUT / 2), SIZE, rank)
        pipe.send(None)
        while True:
            module, name, arguments = pipe.recv()
            torch.manual_seed(0)
            getattr(importlib.import_module(module), name).body(rank, **arguments)
            torch.distributed.barrier()
            pipe.send(None)
    except EOFError:
        pass
    except BaseException:
        pipe.send(traceback.format_exc())


@pytest.fixture(scope="module")
def processes():
    if not torch.distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    found = Processes()
    yield found
    found.close()


def on_two_processes(body: Callable[..., None]) -> Callable[..., None]:
    """A test of `body(rank, ...)`, called in both processes; its other parameters are pytest's, and must pickle."""

    @functools.wraps(body)
    def test(processes: Processes, **arguments: Any) -> None:
        processes.run(body.__module__, body.__name__, arguments)

    parameters = [parameter for name, parameter in inspect.signature(body).parameters.items() if name != "rank"]
    first = inspect.Parameter("processes", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = inspect.Signature([first, *parameters])
    test.body = body
    return test
