"""Every command that writes, on inputs so small that it takes about a second; what it may leave on the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from runs import TINY
from small_set import prepared

from hida.config import Config, DiscriminatorConfig, GeneratorConfig
from hida.models import build_discriminator, build_generator
from hida.weights import checkpoint

TRAIN = [*TINY, "--train.checkpoint-epochs", "0.5", "--train.sample-epochs", "2", "--train.keep", "2"]


@dataclass(frozen=True)
class Command:
    """A command, run in a folder of its own in which it writes to ``out``, ``cache`` and ``tmp``.

    Args:
        words: what follows ``hida``; {inputs} is the folder of the inputs.
        older: words of a run before, whose results lie in ``out`` already.
        loose: names (a regular expression) whose contents need not equal another run's.
        kept: names that a stopped run may leave on purpose, since the next one continues from them.
    """

    name: str
    words: tuple[str, ...]
    older: tuple[str, ...] = ()
    loose: str = "(?!)"
    kept: str = "(?!)"

    def at(self, inputs: Path, words: tuple[str, ...] = ()) -> list[str]:
        return [word.replace("{inputs}", str(inputs)) for word in words or self.words]


SKETCH = ("sketch", "{inputs}/photos", "--weights", "{inputs}/tiny.safetensors", "--depth", "none", "--out", "out")
SKETCH += ("--device", "cpu", "--sheet", "--gallery", "--frame")
EVALUATE = ("evaluate", "--weights", "{inputs}/tiny.safetensors", "--target", "{inputs}/data", "--out", "out")
EVALUATE += ("--device", "cpu", "--metrics", "scoot")
PAIRS = ("prepare", "pairs", "{inputs}/pairs", "out", "--depth", "builtin", "--workers", "1")
ABLATE = (
    "ablate",
    "--data",
    "{inputs}/data",
    "--presets",
    "leaky",
    "metaacon",
    "--iterations",
    "2",
    "--base-width",
    "2",
)
ABLATE += ("--recipe", "{inputs}/recipe.toml", "--batch", "2", "--metrics", "scoot", "--device", "cpu", "--out", "out")
TRAIN_DEPTH = ("train-depth", "--photos", "{inputs}/photos", "--out", "out/depth.safetensors", "--steps", "2")
TRAIN_DEPTH += ("--batch", "2", "--held-out", "1", "--test", "0")
_RUN = r"out/(checkpoints/.*|samples/.*|log\.jsonl|config\.json)"
COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            ("train", "--data", "{inputs}/data", "--out", "out", *TRAIN),
            ("train", "--data", "{inputs}/data", "--out", "out", *TRAIN, "--stop-after", "3"),
            kept=_RUN,
        ),
        Command("prepare", PAIRS, PAIRS, kept=r"out/(journal\.jsonl|.*/[^.].*\.png)"),
        Command("evaluate", EVALUATE, (*EVALUATE, "--limit", "1"), kept=r"(out/sketches|cache)/[^.].*"),
        Command("sketch", (*SKETCH, "whole"), (*SKETCH, "whole", "--style", "2", "--sweep", "1", "2")),
        Command("fetch", ("weights", "fetch", "thing"), kept="cache/verified/X.json"),
        Command(
            "prepare-fs2k",
            ("prepare", "fs2k", "{inputs}/fs2k", "out", "--allow-faults", "--workers", "1", "--depth", "builtin"),
            kept=r"out/(journal\.jsonl|.*/[^.].*\.png)",
        ),
        Command(
            "pack",
            ("pack", "{inputs}/data", "out/set.zip"),
            ("pack", "{inputs}/data", "out/set.zip", "--split", "test"),
        ),
        Command(
            "compare",
            ("compare", "{inputs}/a", "{inputs}/b", "--out", "out/table.md"),
            ("compare", "{inputs}/b", "--out", "out/table.md"),
        ),
        Command(
            "ablate",
            ABLATE,
            loose=r"out/(table\.md|table\.json|.*output\.txt|figure\.png|plan\.json|.*log\.jsonl)",
            kept=r"out/(plan\.json|runs/.*)|cache/.*",
        ),
        Command(
            "inspect",
            (
                "inspect",
                "{inputs}/photos",
                "--weights",
                "{inputs}/tiny.safetensors",
                "--depth",
                "none",
                "--frame",
                "whole",
                "--device",
                "cpu",
                "--out",
                "out",
            ),
        ),
        Command(
            "export-released",
            ("export-released", "{inputs}/tiny.safetensors", "out/released.ckpt"),
            ("export-released", "{inputs}/other.safetensors", "out/released.ckpt"),
        ),
        Command(
            "import-released",
            ("import-released", "{inputs}/released.ckpt", "out"),
            ("import-released", "{inputs}/other.ckpt", "out"),
        ),
        Command("depth", ("depth", "{inputs}/photos", "--method", "builtin", "--out", "out")),
        Command("train-depth", (*TRAIN_DEPTH, "--checkpoint", "out/state.safetensors"), kept=r"out/state\.safetensors"),
        Command(
            "snapshot",
            ("weights", "snapshot", "{inputs}/run", "out/weights.safetensors"),
            (
                "weights",
                "snapshot",
                "{inputs}/run/checkpoints/iteration-00000007.safetensors",
                "out/weights.safetensors",
            ),
        ),
    )
}


def make_inputs(folder: Path, hida) -> None:
    """Write what the commands read; ``hida`` runs one."""
    prepared(folder / "data", 8)
    random = np.random.default_rng(0)
    for number in range(4):
        source = folder / "data" / "photo" / f"p{number}.png"
        (folder / "photos").mkdir(exist_ok=True)
        shutil.copyfile(source, folder / "photos" / source.name)
    for name in [f"p{k}.png" for k in range(8)]:
        for kind in ("photo", "sketch"):
            style = folder / "pairs" / kind / str(int(name[1]) % 2 + 1)
            style.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "data" / kind / name, style / name)
    _write_fs2k(folder / "fs2k", folder / "data", random)
    for name, seed in (("tiny", 0), ("other", 1)):
        torch.manual_seed(seed)
        config = Config(generator=GeneratorConfig(base_width=2), discriminator=DiscriminatorConfig(base_width=1))
        tensors = {f"ema.{k}": v for k, v in build_generator(config).state_dict().items()}
        checkpoint.save(folder / f"{name}.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
        # What import-released takes has a discriminator, of the authors' size.
        config = dataclasses.replace(config, discriminator=DiscriminatorConfig())
        tensors |= {f"discriminator.{k}": v for k, v in build_discriminator(config).state_dict().items()}
        checkpoint.save(folder / f"{name}-with-discriminator.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    (folder / "recipe.toml").write_text("[train]\nholdout = 1\n", encoding="utf-8")
    hida("train", "--data", "data", "--out", "run", *TRAIN)
    hida("export-released", "tiny-with-discriminator.safetensors", "released.ckpt")
    hida("export-released", "other-with-discriminator.safetensors", "other.ckpt")
    for name, weights in (("a", "tiny"), ("b", "other")):
        words = ("--target", "data", "--metrics", "scoot", "--device", "cpu", "--cache", "none")
        hida("evaluate", "--weights", f"{weights}.safetensors", "--out", name, *words)
    shutil.rmtree(folder / "cache", ignore_errors=True)


def _write_fs2k(folder: Path, data: Path, random: np.random.Generator) -> None:
    colours = {"skin_color": [163, 139], "lip_color": [156.9, 82.5, 79.0], "eye_color": [118.6, 71.2, 69.5]}
    rest = {"hair": 0, "hair_color": 2, "gender": 0, "earring": 1, "smile": 1, "frontal_face": 1}
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        entries = []
        for k in numbers:
            photo, sketch = folder / f"photo/photo1/image{k:04d}.jpg", folder / f"sketch/sketch1/sketch{k:04d}.jpg"
            for path, kind in ((photo, "photo"), (sketch, "sketch")):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.open(data / kind / f"p{k}.png").convert("RGB").save(path, quality=95)
            entries.append({"image_name": f"photo1/image{k:04d}", **colours, **rest, "style": k % 3})
        (folder / f"anno_{split}.json").write_text(json.dumps(entries), encoding="utf-8")
