"""Training of one model by several processes: each computes its share of every batch, and all apply the sum of the gradients.

The process that calls `fit` is the first; it starts the others, which run the same fit without loggers and callbacks. Lightning's
DDP strategy connects them. Its wrapper around the network is left out: it reduces the gradients of one backward pass for each
call of the network, and a Lightning batch holds those of many optimizer steps here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor, distributed
from torch.nn import Module

from forecaster.errors import BadSpec, InputError, TrainingError
from forecaster.spec import Spec
from forecaster.training.lightning import ClusterEnvironment, DDPStrategy

_LAUNCHED_COUNT, _LAUNCHED_INDEX = "WORLD_SIZE", "RANK"  # what `torchrun` sets in each process that it starts
_STOP_SECONDS = 10.0  # within which a process ends by itself after the fit, before it is stopped


@dataclass(frozen=True)
class TrainingProcess:
    """One of several processes that train together.

    Attributes:
        index: 0 for the process that returns the result.
        count: The number of processes.
        port: The port of this machine at which the first one meets the others.
    """

    index: int
    count: int
    port: int


class _ProcessesOfOneMachine(ClusterEnvironment):
    """Describes to Lightning the process that it runs in; the others are started already."""

    def __init__(self, process: TrainingProcess) -> None:
        super().__init__()
        self._process = process

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self._process.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._process.count

    def set_world_size(self, size: int) -> None:
        assert size == self._process.count, "Lightning counts the devices that were counted before"

    def global_rank(self) -> int:
        return self._process.index

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._process.index

    def local_rank(self) -> int:
        return self._process.index

    def node_rank(self) -> int:
        return 0


class SharedBatchStrategy(DDPStrategy):
    """Lightning's DDP without its wrapper: `TrainingModule` sums the gradients of every optimizer step itself."""

    def __init__(self, process: TrainingProcess) -> None:
        super().__init__(cluster_environment=_ProcessesOfOneMachine(process))

    def _setup_model(self, model: Module) -> Module:  # type: ignore[override]
        return model

    def _register_ddp_hooks(self) -> None:
        """Registers nothing, as there is no wrapper."""


def sum_over_processes(tensors: list[Tensor]) -> None:
    """Replaces tensors by their sums over all processes, in one message; without other processes they stay as they are."""
    if not distributed.is_initialized():
        return
    message = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(message)
    totals = torch.split(message, [tensor.numel() for tensor in tensors])
    for tensor, total in zip(tensors, totals, strict=True):
        tensor.copy_(total.view_as(tensor))


def refuse_other_launchers() -> None:
    """Raises InputError in a process that `torchrun` started with others: each of them would train the same model."""
    count = os.environ.get(_LAUNCHED_COUNT, "1")
    if count.isdecimal() and int(count) > 1:
        raise InputError(
            f"Expected one process, which starts the others itself; found process {os.environ.get(_LAUNCHED_INDEX, '?')} of "
            f"{count}, as torchrun starts them. Start the command once, with --devices {count}.",
            where="devices",
        )


def validate_shares(spec: Spec, *, count: int) -> None:
    """Raises BadSpec where a batch cannot be divided into equal shares."""
    if spec.training.batch % count:
        raise BadSpec(
            f"training.batch: expected a multiple of the {count} devices, each of which computes an equal share of a batch; "
            f"found {spec.training.batch}. Use {max(count, spec.training.batch // count * count)}, or another number of devices.",
            where="training.batch",
        )


@contextmanager
def start_processes(train: Callable[[TrainingProcess], object], *, count: int) -> Iterator[TrainingProcess]:
    """Starts the other processes of a training, and yields this one, the first.

    They end with the block: by themselves if it succeeds, stopped if it fails. The threads of PyTorch are divided among all
    processes. If another process fails, the message of the next exchange fails in this one.

    Args:
        train: Called in each of the other processes; it is pickled.
        count: The number of processes.
    Raises:
        TrainingError: One of the other processes failed, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    first, failures = TrainingProcess(0, count, _find_free_port()), context.SimpleQueue()
    threads, excepthook = torch.get_num_threads(), sys.excepthook
    threads_of_each = max(1, threads // count)
    others = [
        context.Process(
            target=_run_process,
            args=(train, replace(first, index=index), threads_of_each, failures),
            name=f"training process {index}",
            daemon=True,
        )
        for index in range(1, count)
    ]
    for other in others:
        other.start()
    torch.set_num_threads(threads_of_each)
    has_ended = False
    try:
        yield first
        has_ended = True
    except RuntimeError as error:  # of an exchange with a process that is gone, unless it is one of our own
        others[0].join(timeout=1.0)
        cause = failures.get() if not failures.empty() else _describe_dead(others)
        if cause is None:
            raise
        raise TrainingError(
            f"Expected {count} processes until the end of the training; {cause}. Start it again: it resumes from its checkpoint.",
            where="devices",
        ) from error
    finally:
        torch.set_num_threads(threads)
        sys.excepthook = excepthook  # torch replaces it by one that writes the rank before every line
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for other in others:
            other.join(timeout=_STOP_SECONDS if has_ended else 0.0)
            if other.is_alive():
                other.terminate()
                other.join()


def _run_process(
    train: Callable[[TrainingProcess], object],
    process: TrainingProcess,
    threads: int,
    failures: multiprocessing.SimpleQueue[str],
) -> None:
    """Runs the share of one of the other processes. An interrupt of the terminal is left to the first process, which stops it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        train(process)
    except Exception as error:  # reported by the first process, whose next exchange fails
        failures.put(
            f"process {process.index} failed: {''.join(traceback.format_exception_only(error)).strip().rstrip('.')}"
        )
        raise SystemExit(1) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _describe_dead(processes: Sequence[BaseProcess]) -> str | None:
    """Describes the first process that did not end by itself; None if there is none."""
    dead = next((process for process in processes if process.exitcode not in (None, 0)), None)
    return None if dead is None else f"{dead.name} ended with code {dead.exitcode}"


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
