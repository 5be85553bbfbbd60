"""The processes of one run; with a single process nothing here does anything."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from hida.errors import HidaError, handled, stops

_TORCHRUN = "start several processes with torchrun --nproc_per_node=N -m hida.train, or unset WORLD_SIZE."

# Gloo and NCCL have no type for it.
_GONE = r"Connection (closed|reset) by peer|Broken pipe|remote process exited|Socket closed"


def _number(name: str, least: int, largest: int) -> int:
    text = os.environ[name]
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not least <= int(text) <= largest:
        raise HidaError(f"{name} is {text!r}, which is no number that it can be; {_TORCHRUN}")
    return int(text)


def at_once() -> contextlib.AbstractContextManager[None]:
    """Let signals end the process at once while it waits for others to join it.

    That waits in C, for half an hour where another has ended, and no handler of Python's runs meanwhile.
    """
    return handled(stops(), signal.SIG_DFL)


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started: its rank, their number, its device."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> World:
        """Join the process group that torchrun's environment describes: NCCL on GPUs, gloo on CPUs.

        Raises:
            HidaError: if the environment describes several processes incompletely, or not by numbers that can be.
        """
        size = _number("WORLD_SIZE", 1, sys.maxsize) if os.environ.get("WORLD_SIZE") else 1
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # streams and graphs belong to the current one
        if size == 1:
            return cls(0, 1, chosen)
        absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if absent:
            raise HidaError(f"WORLD_SIZE is {size} but {', '.join(absent)} is not set; {_TORCHRUN}")
        for name, largest in (("RANK", size - 1), ("LOCAL_RANK", size - 1), ("MASTER_PORT", 65535)):
            if name in os.environ:
                _number(name, 0, largest)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        with at_once():
            distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), size, chosen)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for every process: one that ends while another still uses the group can bring it down."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            distributed.destroy_process_group()

    def share(self, module: nn.Module) -> None:
        """Give every process the leader's weights."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        self.average(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def average(self, values: Tensor) -> Tensor:
        """Replace ``values`` by their mean over the processes."""
        if self.size > 1:
            distributed.all_reduce(values)
            values /= self.size
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return the ``values`` of every process, by rank along a new first dimension."""
        if self.size == 1:
            return values[None]
        everyones = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(everyones, values.contiguous())
        return torch.stack(everyones)

    def lead(self, act: Callable[[], object]) -> None:
        """Let the leader act while the others wait for it; where it is refused, all are.

        Raises:
            HidaError: in all processes, if ``act`` raises one; only the leader's has its message.
            OSError: in the leader, if ``act`` raises one.
        """
        refusal: Exception | None = None
        if self.leads:
            try:
                act()
            except (HidaError, OSError) as error:
                refusal = error
        if self.any(refusal is not None):
            raise refusal or HidaError("the process of rank 0 has refused the run; its own message says why.")

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Say it in words where a message fails because another process has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not re.search(_GONE, str(error)):
                raise
            raise HidaError("another process of the run has ended; its own message says why.") from error

    def any(self, flag: bool) -> bool:
        """Return whether the flag is raised in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        distributed.all_reduce(value)
        return bool(value.item())
