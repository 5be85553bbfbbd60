"""Typed, frozen configurations; the presets under ``hida/presets`` are TOML over these classes."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from hida.errors import first_line
from hida.fields import ConfigError, build, plain, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# As hida.nn.activation and hida.ops.ida name them; repeated, so that a configuration loads without torch.
Activation = Literal["info_acon", "meta_acon", "relu"]
Residual = Literal["activated", "input", "none"]
Fill = Literal["black", "white", "replicate"]

_WIDEST, _STYLES = 1024, 1000  # beyond what any machine trains: a number there is a slip or a damaged file


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator (paper, Sec. 3)."""

    base_width: int = 64
    """channels of the stems; every other width is a multiple of it (released: 64)"""
    styles: int = 3
    """number of sketch styles"""
    activation: Activation = "info_acon"
    """InfoACON behind each decoder level's upsampling and metaACON elsewhere (HIDA); or metaACON, or the pair of
    LeakyReLU 0.2 and ReLU, before each convolution as in Pix2Pix (Table 3)"""
    modulation: Literal["spade", "none"] = "spade"
    """DySPADE: γ and β per pixel from the condition map; or a plain instance norm (Table 2)"""
    depth: bool = True
    """the depth map enters, by a stem of its own and the condition map, and is reconstructed by a head (Table 2)"""
    style_map: bool = True
    """the style enters the condition map; without it the network draws one style whatever it is asked for"""
    residual: Residual = "activated"
    """what a decoder block adds after modulation: the activated map (released code) or its input (Eq. 4)"""
    depth_per_level: Literal["nearest", "gaussian"] = "nearest"
    """how the depth map reaches each level's size: nearest resampling (released) or a Gaussian pyramid (paper)"""
    dog_levels: tuple[int, ...] = (0, 1)
    """decoder levels, 0 the innermost, whose upsampling is deformable outlining (DOG)"""
    dropout: float = 0.5
    """dropout after the three innermost decoder levels"""

    def __post_init__(self) -> None:
        even = 2 <= self.base_width <= _WIDEST and self.base_width % 2 == 0
        require(even, f"base_width must be an even number in 2..{_WIDEST}", self)
        require(1 <= self.styles <= _STYLES, f"styles must be in 1..{_STYLES}", self)
        require(set(self.dog_levels) <= set(range(7)), "dog_levels must be in 0..6", self)
        require(0 <= self.dropout < 1, "dropout must be in [0, 1)", self)
        conditioned = self.activation == "info_acon" or self.modulation == "spade"
        require(
            conditioned or not self.style_map,
            "style_map has no effect without InfoACON or DySPADE; set it to false",
            self,
        )
        require(
            self.depth or self.style_map or not conditioned,
            "depth and style_map cannot both be false with InfoACON or DySPADE, which they steer",
            self,
        )
        require(
            self.depth or self.depth_per_level == "nearest",
            "depth_per_level has no effect without depth; leave it at nearest",
            self,
        )
        require(
            self.modulation == "spade" or self.residual == "none",
            "residual belongs to DySPADE: without it, set it to none",
            self,
        )
        require(
            self.activation == "info_acon" or self.residual != "activated",
            "residual has no activated map to add without InfoACON; set it to input or none",
            self,
        )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The conditional patch discriminator."""

    base_width: int = 64
    """channels of its first convolution (released: 64)"""
    scales: int = 1
    """discriminators of the same make: of the whole size, of half of it, of a quarter … (released: 1)"""
    noise: float = 0.0
    """standard deviation of the noise on the sketches that it sees, black being −1 and white 1 (released: 0)"""
    photo: bool = False
    """it sees the photo, too, beside depth and sketch (released: no)"""
    styles: int = 0
    """number of styles of which it is told the one that was asked for; 0: it is told none (released: 0)"""
    augment: bool = False
    """its patches are shifted, with a hole, in another tone, real and drawn alike (DiffAugment; released: no)"""
    projected: bool = False
    """further heads see AlexNet's features of sketch and photo (projected discriminator; released: no)"""

    def __post_init__(self) -> None:
        require(1 <= self.base_width <= _WIDEST, f"base_width must be in 1..{_WIDEST}", self)
        require(1 <= self.scales <= 4, "scales must be in 1..4", self)
        require(0 <= self.noise < math.inf, "noise must be ≥ 0", self)
        require(0 <= self.styles <= _STYLES, f"styles must be in 0..{_STYLES}", self)


@dataclass(frozen=True)
class LossConfig:
    """The training objective (paper, Sec. 3.4)."""

    adversarial: Literal["hinge", "cross_entropy"] = "hinge"
    """hinge (released) or cross entropy with logits (paper)"""
    mean_difference: float = 1.0
    """weight of (mean D(real) − mean D(fake))⁴ in D's loss; the released code has 2·½"""
    fake_depth: Literal["given", "reconstructed"] = "given"
    """the depth that D sees beside a drawn sketch: the given map (released) or the reconstruction (Eq. 8)"""
    texture: Literal["prewitt_photo", "sobel_sketch"] = "prewitt_photo"
    """gradients compared by the textural loss: with the photo's (released) or the target sketch's (Eq. 6)"""
    geometry: Literal["rmse", "mse"] = "rmse"
    """depth reconstruction error: its root mean square (released) or mean square (Eq. 5)"""
    weight_adversarial: float = 1.0
    weight_projected: float = 0.5
    """weight of the heads' share of the adversarial loss, beside the patches' 1 (only with discriminator.projected)"""
    weight_pixel: float = 4.0
    weight_texture: float = 1.0
    weight_geometry: float = 4.0
    weight_feature_matching: float = 0.0
    """weight of the distance of D's features of the drawn and of the target sketch (pix2pixHD; released: 0)"""
    weight_perceptual: float = 0.0
    """weight of the LPIPS distance (AlexNet) from the target sketch, whose network must be available (released: 0)"""
    weight_distillation: float = 0.0
    """weight of the mean absolute difference from a teacher's sketch (hida train --distil)"""

    def __post_init__(self) -> None:
        numbers = [field.name for field in dataclasses.fields(self) if isinstance(field.default, float)]
        for name in numbers:
            require(0 <= getattr(self, name) < math.inf, f"{name} must be ≥ 0", self)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule of both networks."""

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 0.01
    """decoupled weight decay; only with adamw"""
    schedule: Literal["epochs", "elapsed"] = "epochs"
    """what the rate follows and the run ends by: train.epochs, or train.minutes"""
    constant_epochs: float = 400
    """schedule epochs: epochs at the full rate; then it falls linearly to 0 at the last epoch"""
    decay_share: float = 0.4
    """schedule elapsed: share of the minutes, at their end, in which the rate falls linearly to 0"""
    warmup_epochs: float = 0.0
    """epochs in which the rate grows linearly from 0"""
    base_batch: int = 0
    """batch that learning_rate is meant for: it is multiplied by train.batch / base_batch (0: taken as it is)"""
    discriminator_rate: float = 1.0
    """the discriminator's learning rate, as a multiple of the generator's (two time-scales; released: 1)"""
    head_start: float = 0.0
    """epochs in which the discriminator learns alone: where trained weights meet a fresh one, it would mislead them"""

    def __post_init__(self) -> None:
        require(
            self.name == "adamw" or self.weight_decay == 0, "weight_decay has no effect with adam; set it to 0", self
        )
        require(0 < self.learning_rate < math.inf, "learning_rate must be > 0", self)
        require(0 <= self.beta1 < 1, "beta1 must be in [0, 1)", self)
        require(0 <= self.beta2 < 1, "beta2 must be in [0, 1)", self)
        require(0 <= self.weight_decay < math.inf, "weight_decay must be ≥ 0", self)
        require(self.base_batch >= 0, "base_batch must be ≥ 0", self)
        require(0 <= self.head_start < math.inf, "head_start must be ≥ 0", self)
        require(0 < self.discriminator_rate < math.inf, "discriminator_rate must be > 0", self)
        require(self.constant_epochs >= 0, "constant_epochs must be ≥ 0", self)
        require(0 <= self.decay_share <= 1, "decay_share must be in 0..1", self)
        require(0 <= self.warmup_epochs < math.inf, "warmup_epochs must be ≥ 0", self)
        require(
            self.schedule == "elapsed" or self.warmup_epochs <= self.constant_epochs,
            "warmup_epochs must be in 0..constant_epochs",
            self,
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Random framing of the 250×250 pairs into 256×256 training crops."""

    flip: bool = True
    """mirror half of the pairs left to right"""
    pad: int = 18
    """border added on each side before the random 256×256 crop (released: 250 → 286)"""
    rotate: float = 0.0
    """largest rotation, degrees"""
    scale: float = 0.0
    """largest relative change of scale"""
    jitter: float = 0.0
    """strength of brightness, contrast, saturation and gamma changes of the photo, 0..1"""
    fill_photo: Fill = "black"
    fill_sketch: Fill = "black"

    def __post_init__(self) -> None:
        require(self.pad >= 3, "pad must be ≥ 3, so that a 256 crop fits into a 250 image", self)
        require(0 <= self.jitter <= 1, "jitter must be in 0..1", self)
        require(0 <= self.scale < 1, "scale must be in [0, 1)", self)
        require(0 <= self.rotate <= 180, "rotate must be in 0..180", self)


@dataclass(frozen=True)
class TrainConfig:
    """The training run."""

    batch: int = 4
    """pairs per iteration, over all processes"""
    epochs: float = 800
    minutes: float = 0.0
    """train for so many minutes instead; only with optimizer.schedule elapsed"""
    seed: int = 0
    holdout: int = 58
    """training pairs set aside to watch the held-out error (0: train on all)"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast precision; fp16 needs a GPU"""
    channels_last: bool = False
    """the networks' memory layout; on a CPU it is heeded where the native ops run, which are what makes it pay"""
    compile: bool = False
    """compile the generator's large levels with torch.compile: faster steps after a minute or more of start-up"""
    cuda_graph: bool = True
    """on a GPU, replay the iteration as one CUDA graph"""
    cudnn_benchmark: int = 10
    """algorithms that cuDNN tries for each convolution at the start (0: none, it takes the one it expects most of)"""
    ema: float = 0.998
    """decay of the EMA generator per iteration (0: no EMA)"""
    clip: float = 0.0
    """largest gradient norm (0: off)"""
    log_every: int = 20
    """iterations between log lines"""
    sample_epochs: float = 5.0
    """epochs between sample grids (0: none)"""
    evaluate_epochs: float = 1.0
    """epochs between held-out errors"""
    checkpoint_minutes: float = 10.0
    checkpoint_epochs: float = 50.0
    keep: int = 3
    """newest checkpoints that stay on disk"""
    threads: int = 0
    """CPU threads per process (0: torch's choice)"""
    tensorboard: bool = False
    """also write TensorBoard events (extra: tensorboard)"""

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch must be ≥ 1", self)
        require(0 < self.epochs < math.inf, "epochs must be > 0 and finite", self)
        require(0 <= self.seed < 2**63, "seed must be in 0..2⁶³−1", self)
        require(0 <= self.ema < 1, "ema must be in [0, 1)", self)
        require(self.keep >= 1, "keep must be ≥ 1", self)
        require(self.log_every >= 1, "log_every must be ≥ 1", self)
        require(self.checkpoint_minutes > 0, "checkpoint_minutes must be > 0", self)
        require(0 <= self.minutes < math.inf, "minutes must be ≥ 0 and finite", self)
        require(self.cudnn_benchmark >= 0, "cudnn_benchmark must be ≥ 0", self)
        for name in ("holdout", "clip", "threads", "sample_epochs", "evaluate_epochs", "checkpoint_epochs"):
            require(getattr(self, name) >= 0, f"{name} must be ≥ 0", self)


@dataclass(frozen=True)
class Config:
    """Everything that decides what is trained and how."""

    name: str = "released"
    """the preset it began as"""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        timed = self.optimizer.schedule == "elapsed"
        if timed and not self.train.minutes:
            raise ConfigError(
                "optimizer.schedule is elapsed but train.minutes is 0; give --train.minutes, or leave the schedule at "
                "epochs."
            )
        if self.train.minutes and not timed:
            raise ConfigError(
                f"train.minutes is {self.train.minutes:g} but optimizer.schedule is epochs; add --optimizer.schedule "
                "elapsed, or use --time-limit, which only interrupts a run."
            )
        require(
            timed or self.optimizer.constant_epochs <= self.train.epochs,
            f"constant_epochs must not exceed train.epochs ({self.train.epochs:g})",
            self.optimizer,
        )
        require(
            self.discriminator.styles in (0, self.generator.styles),
            f"styles must be 0 or the generator's number of styles ({self.generator.styles})",
            self.discriminator,
        )
        if not self.generator.depth:
            no_effect = "{} has no effect on a generator without depth; set it to {}"
            require(self.loss.weight_geometry == 0, no_effect.format("weight_geometry", 0), self.loss)
            require(self.loss.geometry == "rmse", no_effect.format("geometry", "rmse"), self.loss)
            require(self.loss.fake_depth == "given", no_effect.format("fake_depth", "given"), self.loss)

    @property
    def seconds(self) -> float:
        """How long the run trains; infinite where its epochs end it."""
        return 60 * self.train.minutes or math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts and lists, as JSON and TOML hold them."""
        return plain(dataclasses.asdict(self))


def presets() -> list[str]:
    """Return the names of the presets that ship with the package."""
    return sorted(p.name[:-5] for p in resources.files("hida.presets").iterdir() if p.name.endswith(".toml"))


def load_preset(name: str) -> Config:
    """Return the preset ``name``, or the configuration in a TOML file of that path.

    Raises:
        ConfigError: for an unknown name, or a file that is no configuration.
    """
    if name.endswith(".toml"):
        return _load_file(Path(name))
    if name not in presets():
        raise ConfigError(f"there is no preset {name!r}; choose one of {', '.join(presets())}.")
    text = resources.files("hida.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return from_dict({"name": name, **tomllib.loads(text)})


def _load_file(path: Path) -> Config:
    try:
        return from_dict({"name": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))})
    except ConfigError as error:
        raise ConfigError(f"the configuration '{path}' cannot be used: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration '{path}' cannot be read ({first_line(error)}); check it.") from None


def from_dict(values: dict[str, Any]) -> Config:
    """Build a configuration from nested dicts (TOML, JSON, checkpoint metadata).

    Raises:
        ConfigError: for an unknown field or a value of the wrong type.
    """
    return build(Config, values, "")
