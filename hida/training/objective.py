"""What both networks minimise: the losses of one batch, from the generator's output to two numbers to differentiate."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hida.config import Config
from hida.data.framing import Batch
from hida.device import to_channels_last
from hida.metrics.lpips import load_lpips
from hida.models.discriminator import Discriminator
from hida.training import losses
from hida.training.augmentation import Augmentation

LOSSES = ("d", "adversarial", "pixel", "texture", "geometry")
FURTHER = ("feature_matching", "perceptual", "distillation")
"""losses that are computed only if their weight is above 0"""


@dataclass(frozen=True)
class Drawn:
    """What the generator made of a batch, and what the discriminator sees of it."""

    sketch: Tensor
    depth_hat: Tensor
    seen_depth: Tensor
    """depth beside the drawn sketch, as the discriminator sees it"""
    stages: dict[str, list[Tensor]]
    """AlexNet's stages of the drawn sketch, the target and the photo, those that are needed"""
    augmentation: Augmentation | None


class View(NamedTuple):
    """What the discriminator is shown: as its methods take it."""

    depth: Tensor
    sketch: Tensor
    photo: Tensor | None
    style: Tensor | None

    @classmethod
    def joined(cls, first: View, second: View) -> View:
        """Return both, the second's pictures behind the first's."""
        photo, style = (
            None if a is None or b is None else torch.cat((a, b))
            for a, b in ((first.photo, second.photo), (first.style, second.style))
        )
        return cls(torch.cat((first.depth, second.depth)), torch.cat((first.sketch, second.sketch)), photo, style)


class Objective:
    """The losses of a configuration; they are computed in whatever autocast the caller has entered.

    ``nhwc``: the layout of the networks.
    """

    def __init__(self, config: Config, device: torch.device, nhwc: bool = False) -> None:
        self.config, self.nhwc = config, nhwc
        self.names = (*LOSSES, *(name for name in FURTHER if getattr(config.loss, f"weight_{name}")))
        looks = "perceptual" in self.names or config.discriminator.projected
        self.perceiver = load_lpips("alex", device) if looks else None
        if self.perceiver is not None and nhwc:
            # A copy: others measure with the one that is kept loaded.
            self.perceiver = to_channels_last(copy.deepcopy(self.perceiver))

    def seen(self, batch: Batch, sketch: Tensor, depth_hat: Tensor) -> Drawn:
        """Return what is computed once for both networks' losses."""
        config = self.config
        depth = batch.depth if config.loss.fake_depth == "given" else depth_hat
        size = (sketch.shape[2], sketch.shape[3])
        augmentation = Augmentation.draw(len(sketch), size, sketch.device) if config.discriminator.augment else None
        stages = {}
        if self.perceiver is not None:
            images = {"sketch": sketch, "target": batch.sketch.to(sketch.dtype)}
            if config.discriminator.projected:
                images["photo"] = batch.photo.to(sketch.dtype)
            for name, image in zip(images, losses.shifted(*images.values()), strict=True):
                with torch.set_grad_enabled(name == "sketch" and torch.is_grad_enabled()):
                    stages[name] = self._looked_at(image)
        return Drawn(sketch, depth_hat, depth, stages, augmentation)

    def _looked_at(self, image: Tensor) -> list[Tensor]:
        """Return AlexNet's stages of sketches or photos, in the layout of the networks."""
        assert self.perceiver is not None
        image = image.expand(-1, 3, -1, -1)
        if self.nhwc:
            image = image.contiguous(memory_format=torch.channels_last)
        return list(self.perceiver.activations(image))

    def discriminators(self, network: Discriminator, batch: Batch, drawn: Drawn) -> Tensor:
        """Return the discriminator's loss on real and drawn sketches; no gradient goes to the generator."""
        sketch, seen = drawn.sketch.detach(), drawn.seen_depth.detach().to(batch.depth.dtype)
        # Real and drawn in one forward: the discriminator's norms work on each picture alone.
        real = self._view(drawn, batch.depth, batch.sketch.to(sketch.dtype), batch)
        scales = network.logits(*View.joined(real, self._view(drawn, seen, sketch, batch)))
        loss = _mean(self._discriminates(logits) for logits in scales)
        if network.heads is not None:
            both = [
                torch.cat(pair)
                for pair in zip(drawn.stages["target"], (f.detach() for f in drawn.stages["sketch"]), strict=True)
            ]
            photo = [torch.cat((f, f)) for f in drawn.stages["photo"]]
            heads = network.heads(both, photo, torch.cat((batch.style, batch.style)))
            loss = loss + _mean(self._discriminates(logits) for logits in heads)
        return loss

    def generators(self, network: Discriminator, batch: Batch, drawn: Drawn) -> dict[str, Tensor]:
        """Return the parts of the generator's loss, without their weights, in the order of :attr:`names`."""
        config, sketch = self.config.loss, drawn.sketch
        view = self._view(drawn, drawn.seen_depth, sketch, batch)
        features = network.features(*view)
        adversarial = _mean(losses.adversarial_generator(scale[-1], config) for scale in features)
        if network.heads is not None:
            heads = network.heads(drawn.stages["sketch"], drawn.stages["photo"], batch.style)
            share = _mean(losses.adversarial_generator(logits, config) for logits in heads)
            adversarial = adversarial + config.weight_projected * share
        parts = {
            "adversarial": adversarial,
            "pixel": losses.pixel(sketch, batch.sketch),
            "texture": losses.textural(sketch, batch.photo, batch.sketch, config),
            "geometry": losses.geometric(drawn.depth_hat, batch.depth, config),
        }
        if "feature_matching" in self.names:
            with torch.no_grad():
                target = network.features(*self._view(drawn, batch.depth, batch.sketch.to(sketch.dtype), batch))
            parts["feature_matching"] = losses.feature_matching(features, target)
        if "perceptual" in self.names and self.perceiver is not None:
            distance = self.perceiver.distance(drawn.stages["sketch"], drawn.stages["target"])
            parts["perceptual"] = distance.float().mean()
        if "distillation" in self.names:
            parts["distillation"] = losses.pixel(sketch, batch.taught)
        return parts

    def _view(self, drawn: Drawn, depth: Tensor, sketch: Tensor, batch: Batch) -> View:
        """Return depth, sketch, photo and style as the discriminator takes them, None for what it does not."""
        config, change = self.config.discriminator, drawn.augmentation
        photo = batch.photo if config.photo else None
        if change is not None:
            depth, sketch = change.moved(depth), change.toned(sketch)
            photo = None if photo is None else change.moved(photo)
        return View(depth, sketch, photo, batch.style if config.styles else None)

    def _discriminates(self, logits: Tensor) -> Tensor:
        real, fake = logits.chunk(2)
        return losses.adversarial_discriminator(real, fake, self.config.loss)


def _mean(values: Iterable[Tensor]) -> Tensor:
    given = list(values)
    return torch.stack(given).mean() if len(given) > 1 else given[0]
