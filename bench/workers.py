"""Methods in processes of their own, which take turns; and where the time of operators goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile


class Worker:
    """A process that answers each line of its stdin with a line of JSON; it says "ready" first."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name, self.rounds = name, []
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env={"KINETO_LOG_LEVEL": "5", **os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, what: str | int) -> dict:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def answer(replies: Callable[[str], dict]) -> None:
    """Be the other end of a Worker."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(replies(line.strip())), flush=True)


def breakdown(
    step: Callable[[], object], kinds: Mapping[str, tuple[str, ...]], gpu: bool, count: int = 3
) -> dict[str, float]:
    """Return the ms that a step spends in each kind of operator, named by parts of their names, and in the "rest".

    A name that ends in ":" is one of a ``torch.profiler.record_function``: with all that happens inside it.
    """
    step()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as result:
        for _ in range(count):
            step()
        if gpu:
            torch.cuda.synchronize()
    found, inside = dict.fromkeys((*kinds, "rest"), 0.0), 0.0
    for event in result.key_averages():
        if gpu and event.device_type == torch.autograd.DeviceType.CUDA:
            continue  # kernels, counted with the operators that launched them
        kind = next((kind for kind, names in kinds.items() if any(name in event.key for name in names)), "rest")
        if event.key.endswith(":"):
            whole = (event.device_time_total if gpu else event.cpu_time_total) / 1e3 / count
            own = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3 / count
            found[kind] += whole
            inside += whole - own
        else:
            found[kind] += (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3 / count
    found["rest"] -= inside  # was counted there, operator by operator
    return found
