"""The state of a run: its networks, optimisers and counters, and one iteration of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hida.config import Config, DiscriminatorConfig, GeneratorConfig, OptimizerConfig
from hida.data.framing import Batch
from hida.device import to_channels_last
from hida.models import Generator, build_discriminator, build_generator
from hida.ops.dispatch import selected
from hida.training.clock import Abandoned, Guard
from hida.training.distributed import World
from hida.training.half import DEVICES, HALF, HalfWeights
from hida.training.moving import move_towards
from hida.training.objective import Drawn, Objective
from hida.training.schedule import learning_rates, mixed_seed
from hida.training.stored import read_counters, require_moments
from hida.weights.checkpoint import Checkpoint, CheckpointError, fill_module, generator_tensors

T = TypeVar("T")
NetworkConfig = GeneratorConfig | DiscriminatorConfig


class TrainingState:
    """Generator, its EMA, discriminator, two optimisers, the loss scaler, and the images seen."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        torch.manual_seed(mixed_seed(config.train.seed, 0, 2))
        self.generator = build_generator(config).to(world.device)
        self.discriminator = build_discriminator(config).to(world.device)
        nhwc = config.train.channels_last and (world.device.type != "cpu" or selected() == "native")
        if nhwc:
            to_channels_last(self.generator)
            to_channels_last(self.discriminator)
        world.share(self.generator)
        world.share(self.discriminator)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        # Tensors, and on the device: a captured step reads the rates of its iteration from them.
        self.rates = {name: torch.zeros((), device=world.device) for name in networks}
        self.share, self.minus_share = 1.0, torch.zeros((), device=world.device)
        """of the generator in its EMA's next value"""
        self.optimizers = {n: _optimizer(net, config.optimizer, self.rates[n]) for n, net in networks.items()}
        half = HALF.get(config.train.precision) if world.device.type in DEVICES else None
        self.weights = {name: HalfWeights(network, half) for name, network in networks.items()}
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16")
        self.objective = Objective(config, world.device, nhwc)
        self.losses = self.objective.names
        self.iteration = 0
        self.images = 0
        self.elapsed = 0.0
        """seconds trained, over all parts of a run that is timed; 0 in one that is not"""
        self.guard: Guard | None = None
        """lets a signal end an iteration in the middle, if given"""
        if config.train.compile:
            _compile_regions(self.generator)

    def step(self, batch: Batch, epoch: float) -> dict[str, Tensor]:
        """Run one iteration; return the losses as zero-dimensional tensors on the device, not synchronised."""
        self.begin(epoch)
        values = self.update(batch)
        self.follow()
        self.finish()
        return dict(zip(self.losses, values.unbind(), strict=True))

    def begin(self, epoch: float) -> None:
        """Set what depends on the images seen and the time: learning rates, dropout's random numbers, EMA's share."""
        for name, rate in learning_rates(self.config, epoch, self.elapsed).items():
            self.rates[name].fill_(rate)
        # Early on the EMA follows quickly, else it would keep the random start for 1/(1 − decay) iterations.
        count = self.iteration + 1
        self.share = 1 - min(self.config.train.ema, count / (10 + count))
        self.minus_share.fill_(-self.share)
        torch.manual_seed(mixed_seed(self.config.train.seed, self.world.rank, self.images, 3))

    def update(self, batch: Batch) -> Tensor:
        """Update D on real and drawn sketches, then G, with one forward of G for both; return the ``losses``.

        Nothing in here waits for the device or depends on the iteration's number, so that a CUDA graph can hold it.

        Raises:
            Abandoned: if a signal has ended it through the guard; the state is as before then, but for gradients.
        """
        drawn, d = self._do(partial(self._discriminate, batch))
        back = self._way_back("discriminator") if self.guard and self.guard.active else []
        self._update("discriminator", self.discriminator, d)
        try:
            parts = self._do(partial(self._compare, batch, drawn))
            total = sum(getattr(self.config.loss, f"weight_{n}") * v for n, v in parts.items())
            self._update("generator", self.generator, total)
        except Abandoned:
            for tensor, before in back:
                tensor.copy_(before)
            raise
        self.scaler.update()
        return torch.stack([d, *parts.values()]).detach()

    def _discriminate(self, batch: Batch) -> tuple[Drawn, Tensor]:
        """Draw; return what was drawn, and the discriminator's loss."""
        with self.autocast(), self.weights["generator"], self.weights["discriminator"]:
            drawn = self.objective.seen(batch, *self.generator(batch.photo, batch.depth, batch.style))
            return drawn, self.objective.discriminators(self.discriminator, batch, drawn)

    def _compare(self, batch: Batch, drawn: Drawn) -> dict[str, Tensor]:
        """Return the parts of the generator's loss."""
        with self.autocast(), self.weights["discriminator"]:
            self.discriminator.requires_grad_(False)
            parts = self.objective.generators(self.discriminator, batch, drawn)
            self.discriminator.requires_grad_(True)
        return parts

    def _do(self, work: Callable[[], T]) -> T:
        """Do a part of an iteration, which a signal may end if it is a long one."""
        return self.guard(work) if self.guard else work()

    @torch.no_grad()
    def _way_back(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors that an optimiser's step changes, each with a copy."""
        optimizer, parameters = self.optimizers[name], list(self._networks()[name].parameters())
        moments = [value for parameter in parameters for value in optimizer.state[parameter].values()]
        return [(tensor, tensor.detach().clone()) for tensor in (*(p.data for p in parameters), *moments)]

    def finish(self) -> None:
        """Count the iteration."""
        self.iteration += 1
        self.images += self.config.train.batch

    @torch.no_grad()
    def follow(self) -> None:
        """Update the generator's EMA: a step of the iteration, which a CUDA graph holds as it holds :meth:`update`."""
        ema: list[Tensor] = list(self.ema.parameters())
        now: list[Tensor] = list(self.generator.parameters())
        if not self.config.train.ema:
            torch._foreach_copy_(ema, now)
        elif self.minus_share.is_cuda:
            move_towards(now, ema, self.minus_share)
        else:
            torch._foreach_lerp_(ema, now, self.share)

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the networks compute in the configured precision."""
        precision = self.config.train.precision
        return torch.autocast(self.world.device.type, HALF.get(precision), enabled=precision in HALF)

    @torch.inference_mode()
    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw with the EMA generator: sketch and reconstructed depth in float32."""
        with self.autocast():
            sketch, depth_hat = self.ema(batch.photo, batch.depth, batch.style)
        return sketch.float(), depth_hat.float()

    def _update(self, name: str, network: nn.Module, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        self._do(self.scaler.scale(loss).backward)
        self.weights[name].hand_over_gradients()
        self.world.average_gradients(network.parameters())
        if self.config.train.clip:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), self.config.train.clip)
        self.scaler.step(optimizer)
        optimizer.zero_grad()

    def _networks(self) -> dict[str, nn.Module]:
        """Return the networks by their names in a checkpoint."""
        return {"generator": self.generator, "ema": self.ema, "discriminator": self.discriminator}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state under its checkpoint name."""
        networks = self._networks()
        result = {f"{part}.{name}": t for part, net in networks.items() for name, t in net.state_dict().items()}
        for part, optimizer in self.optimizers.items():
            for name, parameter in networks[part].named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    result[f"optimizer_{part}.{key}.{name}"] = value
        return result

    def counters(self) -> dict[str, Any]:
        """Return the numbers of the state, as JSON holds them."""
        return {
            "iteration": self.iteration,
            "images": self.images,
            "elapsed": self.elapsed,
            "processes": self.world.size,
            "scaler": self.scaler.state_dict(),
        }

    def adopt(self, weights: Checkpoint) -> bool:
        """Begin with trained networks: their EMA for the generator and its EMA, their discriminator if it fits.

        Returns:
            Whether the discriminator did fit.

        Raises:
            CheckpointError: if they are of another generator.
        """
        require_generator(weights, self.config)
        generator = generator_tensors(weights)
        for network in (self.generator, self.ema):
            fill_module(network, generator, weights.path)
        tensors, theirs, ours = weights.part("discriminator"), weights.config.discriminator, self.config.discriminator
        fits = bool(tensors) and replace(theirs, noise=ours.noise, augment=ours.augment) == ours
        if fits:
            fill_module(self.discriminator, tensors, weights.path)
        return fits

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue with a checkpoint's networks, optimisers and counters.

        Raises:
            CheckpointError: if its networks or number of processes differ from this run's, or it is damaged.
        """
        for part in ("generator", "discriminator"):
            theirs, ours = getattr(checkpoint.config, part), getattr(self.config, part)
            if theirs != ours:
                raise CheckpointError(
                    f"'{checkpoint.path}' holds another {part} than this run's ({_differences(theirs, ours)}); "
                    "give the options that the config.json of its run has, or choose another --out."
                )
        counters = read_counters(checkpoint)
        if counters.processes != self.world.size:
            raise CheckpointError(
                f"'{checkpoint.path}' was written by {counters.processes} process(es) and this run has "
                f"{self.world.size}; an exact resume needs the same number."
            )
        if self.scaler.is_enabled() and counters.scaler and counters.scaler.keys() != self.scaler.state_dict().keys():
            raise CheckpointError(f"'{checkpoint.path}' has another loss scaler; resume from an older checkpoint.")
        networks = self._networks()
        for part, network in networks.items():
            fill_module(network, checkpoint.part(part), checkpoint.path)
        for part, optimizer in self.optimizers.items():
            stored = checkpoint.part(f"optimizer_{part}")
            keys = sorted({name.split(".", 1)[0] for name in stored})
            require_moments(stored, dict(networks[part].named_parameters()), checkpoint, part)
            names = [name for name, _ in networks[part].named_parameters()]
            entries = {
                index: {key: stored[f"{key}.{name}"] for key in keys if f"{key}.{name}" in stored}
                for index, name in enumerate(names)
            }
            for parameter, values in zip(networks[part].parameters(), entries.values(), strict=True):
                for key, value in values.items():
                    if value.shape == parameter.shape:
                        # The fused step walks memory: the moments need the layout of the (maybe NHWC) weights.
                        values[key] = torch.empty_like(parameter, device="cpu").copy_(value).detach()
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
            for group in optimizer.param_groups:
                group["lr"] = self.rates[part]  # loading has replaced it by a copy
        if counters.scaler:
            self.scaler.load_state_dict(counters.scaler)
        self.iteration, self.images, self.elapsed = counters.iteration, counters.images, counters.elapsed


def require_generator(weights: Checkpoint, config: Config) -> None:
    """Check that the weights are of this run's generator.

    Raises:
        CheckpointError: if they are not.
    """
    theirs, ours = weights.config.generator, config.generator
    if replace(theirs, dropout=ours.dropout) != ours:
        raise CheckpointError(
            f"'{weights.path}' holds another generator than this run's ({_differences(theirs, ours)}); give --preset "
            "and the --generator options that it was trained with."
        )


def _differences(theirs: NetworkConfig, ours: NetworkConfig) -> str:
    names = [field.name for field in fields(theirs) if getattr(theirs, field.name) != getattr(ours, field.name)]
    return ", ".join(f"{name} is {getattr(theirs, name)}, not {getattr(ours, name)}" for name in names)


def _compile_regions(generator: Generator) -> None:
    """Compile the levels with large feature maps: fusing pays there; the small ones would only add start-up time."""
    for region in (*generator.encoder[:2], *generator.decoder[4:], generator.head_sketch, generator.head_depth):
        region.compile()


def _optimizer(network: nn.Module, config: OptimizerConfig, rate: Tensor) -> torch.optim.Optimizer:
    cls = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return cls(
        network.parameters(),
        lr=rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
        capturable=rate.is_cuda,
    )
