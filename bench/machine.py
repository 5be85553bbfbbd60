"""The machine under a benchmark: what it is, and its ceilings, a large copy and large matrix products."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.timing import in_turn, spans
from hida.ops import available, library

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""names of arithmetic; tf32 is float32 whose products are rounded on tensor cores"""
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"


def describe(device: torch.device) -> dict:
    """Return device, clocks, driver and versions."""
    machine = {
        "device": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "native_ops": available(),
        "cpu_kernels": library.instruction_set() if library.loaded else library.why_not,
        "command": sys.argv,
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        machine["torchvision"] = importlib.metadata.version("torchvision")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "device": properties.name,
            "processor": processor(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": properties.L2_cache_size / 2**20,
            "cuda_kernels": library.why_not_cuda or "loaded",
            "nvidia_smi": clocks(),
        }
    return machine


def clocks() -> dict[str, str]:
    """Return what nvidia-smi says of clocks and heat now, or nothing."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        line = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=20, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(QUERY.split(","), (word.strip() for word in line.split(",")), strict=False))


def processor() -> str:
    """Return the CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


@contextlib.contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Let float32 products of torch's own, and of HIDA's, be rounded to TF32 or not."""

    def choose(products: str, convolutions: bool, own: str) -> None:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        os.environ["HIDA_TF32"] = own

    rounded = name == "tf32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, os.environ.get("HIDA_TF32", "0")
    choose("high" if rounded else "highest", rounded, str(int(rounded)))
    try:
        yield
    finally:
        choose(*before)


def ceilings(device: torch.device, kinds: list[str]) -> dict[str, float]:
    """Return bytes per ms that a large copy reads and writes, and FLOP per ms of a large product in each arithmetic."""
    gpu = device.type == "cuda"
    source = torch.randn(1 << (29 if gpu else 26), device=device)  # 2 GiB, far beyond any cache
    target = torch.empty_like(source)
    found = {"copy": 2 * source.numel() * 4 / _median(lambda a=source, b=target: b.copy_(a), gpu)}
    del source, target
    side = 8192 if gpu else 2048
    for kind in kinds:
        with arithmetic(kind):
            a, b = (torch.randn(side, side, device=device).to(DTYPES[kind]) for _ in range(2))
            found[kind] = 2 * side**3 / _median(lambda a=a, b=b: a @ b, gpu)
    return found


def _median(call: Callable[[], object], gpu: bool) -> float:
    if gpu:
        return statistics.median(spans(call, lambda: None, lambda _: None, calls=1, seconds=0, least=13)["fwd"][3:])

    def timed(_: int) -> dict[str, float]:
        start = time.perf_counter()
        call()
        return {"ms": 1e3 * (time.perf_counter() - start)}

    return statistics.median(in_turn({"": timed}, 0.5)[""]["ms"])
