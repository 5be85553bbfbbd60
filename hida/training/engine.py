"""Run iterations, from the pairs on the device to the updated networks: on a GPU as one CUDA graph, replayed."""

from __future__ import annotations

import math
import os
from collections import deque

import torch
from torch import Tensor

from hida.data.dataset import PairTensors
from hida.data.framing import draw_plan, planned_batch
from hida.errors import HidaError
from hida.training.schedule import batch_indices, mixed_seed
from hida.training.state import TrainingState
from hida.weights.checkpoint import Checkpoint, CheckpointError

WARM_UP = 3
"""Iterations that run one by one before the capture: they choose algorithms and allocate the optimisers' states."""
AHEAD = 4
"""Iterations that may be queued on a GPU: enough to keep it busy, few enough that the host can time it."""
FAIL_CAPTURE = "HIDA_FAIL_CAPTURE"
"""Environment variable for tests: the capture fails, also on a CPU, which otherwise has none."""


class CaptureFailed(HidaError):
    """The iteration could not be captured, and this process cannot continue the training.

    torch cannot undo a capture that failed: the CUDA generator remains part of it, and the next thing that draws a
    random number fails. The networks are what they were, since captured work does not run.
    """

    def __init__(self, error: BaseException) -> None:
        while error.__context__ is not None:  # ending the capture fails as well, and does not say why
            error = error.__context__
        self.reason = (str(error).splitlines() or [type(error).__name__])[0]
        super().__init__(
            f"the iteration could not be captured as a CUDA graph ({self.reason}); run the command again with "
            "--train.no-cuda-graph: it continues from the iteration before."
        )


class Engine:
    """Runs iterations of ``state`` on ``pairs``, which are on its device.

    Only the *plan* (which pairs, framed how) comes from the host, in one copy of a few hundred bytes into a buffer that
    stays where it is. Everything after it happens on the device: gathering, framing, both updates, the losses' sums.
    That part is captured once and then replayed where ``graphs`` is true, else called: the same code either way. The
    iterations before the capture are ordinary ones of the run, so that no state has to be restored.

    On a GPU the host runs ahead of the device, by ``AHEAD`` iterations at most.
    """

    def __init__(self, state: TrainingState, pairs: PairTensors, graphs: bool) -> None:
        self.state, self.pairs = state, pairs
        options, world = state.config.train, state.world
        self.share = options.batch // world.size
        self.plan = torch.zeros(self.share, 10, device=world.device)
        self.sums = torch.zeros(len(state.losses), device=world.device)
        self.summed = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.countdown = WARM_UP if graphs else -1
        gpu = world.device.type == "cuda"
        self.stream = torch.cuda.Stream() if graphs and gpu else None
        self.queued: deque[torch.cuda.Event] | None = deque() if gpu else None

    @property
    def captures_next(self) -> bool:
        """Whether the next iteration will be captured first."""
        return self.graph is None and self.countdown == 0

    def step(self) -> None:
        """Run one iteration, without waiting for the device.

        Raises:
            CaptureFailed: if the capture did; nothing has been changed then.
        """
        state = self.state
        self.plan.copy_(self._host_plan(), non_blocking=True)
        state.begin(state.images / len(self.pairs))
        self._run()
        state.finish()
        self.summed += 1
        if self.queued is not None:
            self.queued.append(torch.cuda.Event(blocking=True))
            self.queued[-1].record()
            if len(self.queued) > AHEAD:
                self.queued.popleft().synchronize()

    def losses(self) -> dict[str, float]:
        """Return the mean losses since the last call, over all processes; this waits for the device."""
        means = self.state.world.average(self.sums / max(self.summed, 1)).tolist()
        self.sums.zero_()
        self.summed = 0
        return dict(zip(self.state.losses, means, strict=True))

    def sums_of_all(self) -> dict[str, Tensor]:
        """Return the sums of all processes under their checkpoint names; all have to call this, which waits for them.

        With them the first log line of a resumed run is the mean over as many iterations as any other.
        """
        sums = dict(zip(self.state.losses, self.state.world.gather(self.sums).t().tolist(), strict=True))
        count = torch.tensor(self.summed, dtype=torch.int64)
        return {f"summed.{name}": torch.tensor(values) for name, values in sums.items()} | {"summed.iterations": count}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue with a checkpoint's sums; where it has none, or of other losses, begin anew.

        Raises:
            CheckpointError: if they are not what a sum can be.
        """
        stored = checkpoint.part("summed")
        if stored.keys() != {*self.state.losses, "iterations"}:
            return
        world = self.state.world
        for name, value in stored.items():
            shape, kind = ((), torch.int64) if name == "iterations" else ((world.size,), torch.float32)
            if tuple(value.shape) != shape or value.dtype != kind or not bool((value.abs() < math.inf).all()):
                raise CheckpointError(
                    f"'{checkpoint.path}' holds other sums of losses (summed.{name}); resume from an older checkpoint."
                )
        self.summed = int(stored["iterations"])
        if not 0 <= self.summed <= self.state.iteration:
            raise CheckpointError(
                f"'{checkpoint.path}' holds losses of {self.summed} iterations, which cannot be; resume from an "
                "older checkpoint."
            )
        self.sums.copy_(torch.stack([stored[name][world.rank] for name in self.state.losses]))

    def _host_plan(self) -> Tensor:
        state, world = self.state, self.state.world
        options, first = state.config.train, state.images
        index = batch_indices(first, options.batch, len(self.pairs), options.seed)
        index = index[world.rank * self.share : (world.rank + 1) * self.share]
        random = torch.Generator().manual_seed(mixed_seed(options.seed, world.rank, first, 4))
        plan = draw_plan(index, self.pairs.photo.shape[-1], state.config.augment, random)
        # The allocator of pinned memory keeps it until the copy is done.
        return plan.pin_memory() if world.device.type == "cuda" else plan

    def _device_part(self) -> None:
        batch = planned_batch(self.pairs, self.plan, self.state.config.augment)
        self.sums += self.state.update(batch)
        self.state.follow()

    def _run(self) -> None:
        if self.captures_next:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
        elif self.countdown > 0:
            self.countdown -= 1
            self._warm_up()
        else:
            self._device_part()

    def _warm_up(self) -> None:
        if self.stream is None:
            self._device_part()
            return
        # Warm-up belongs on a side stream: what autograd remembers of streams must not be the default one.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._device_part()
        torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self) -> None:
        """Capture the device's part."""
        fails = bool(os.environ.get(FAIL_CAPTURE))
        try:
            if self.stream is None:
                raise RuntimeError(f"{FAIL_CAPTURE} is set")
            graph = torch.cuda.CUDAGraph()
            # Other threads (a progress bar, NCCL's watchdog) may use CUDA meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._device_part()
                if fails:
                    self.sums.tolist()  # waiting for the device is what a capture cannot hold
        except RuntimeError as error:
            raise CaptureFailed(error) from error
        self.graph = graph
