"""The authors' network written out from the description of it, on their own names and with nothing of hida.

``shapes`` lists every tensor of the released checkpoint; ``draw`` and ``discriminate`` compute from a state_dict of it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

ENCODER = [(2, 2), (2, 4), (4, 8), (8, 8), (8, 8), (8, 8), (8, 8)]  # down2 … down8, in multiples of the base width
DECODER = [(8, 8), (16, 8), (16, 8), (16, 8), (16, 4), (8, 2), (4, 1)]  # up0 … up6: previous + skip, out
DISCRIMINATOR = {"model0.0": (2, 1), "model1.1": (1, 2), "model2.1": (2, 4), "model3.1": (4, 8), "model5.0": (8, 1)}


def shapes(width=64, discriminator_width=64):
    """Names and shapes of the whole checkpoint, used or not, in its order."""
    found = {}

    def conv(name, out, inside, side, transposed=False):
        found[f"{name}.weight"] = (inside, out, side, side) if transposed else (out, inside, side, side)
        found[f"{name}.bias"] = (out,)

    def norm(name, channels):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{kind}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    def acon(name, channels):
        hidden = max(16, channels // 16)
        found[f"{name}.p1"] = found[f"{name}.p2"] = (1, channels, 1, 1)
        conv(f"{name}.fc1", hidden, channels, 1)
        norm(f"{name}.bn1", hidden)
        conv(f"{name}.fc2", channels, hidden, 1)
        norm(f"{name}.bn2", channels)

    g = "Generator"
    conv(f"{g}.down_rgb", width, 3, 4)
    conv(f"{g}.down_par", width, 1, 4)
    for k, (inside, out) in enumerate(ENCODER):
        acon(f"{g}.down{k + 2}.model.0", inside * width)
        conv(f"{g}.down{k + 2}.model.1", out * width, inside * width, 4)
    for k, (inside, out) in enumerate((a * width, b * width) for a, b in DECODER):
        up = f"{g}.up{k}"
        found[f"{up}.p1"] = found[f"{up}.p2"] = (1, out, 1, 1)
        conv(f"{up}.layers", out, inside, 4, transposed=True)
        conv(f"{up}.dcn", out, inside, 3)
        conv(f"{up}.dcn.conv_offset_mask", 54, inside, 3)
        conv(f"{up}.fc1", out, 5, 3)
        conv(f"{up}.fc2", out, 4, 3)
        conv(f"{up}.fc3", out, out, 3)
        conv(f"{up}.norm.mlp_shared.0", 128, 2 if k else 1, 3)
        acon(f"{up}.norm.mlp_shared.1", 128)
        conv(f"{up}.norm.mlp_gamma", out, out, 3)
        conv(f"{up}.norm.mlp_beta", out, out, 3)
        acon(f"{up}.norm.metaAcon", inside)
        conv(f"{up}.en_conv", 1, inside // 2, 4, transposed=True)
        acon(f"{up}.metaAcon", out)
        acon(f"{up}.metaAcon_en", 1)
    for head in ("final_rgb", "final_par"):
        acon(f"{g}.{head}.0", 2 * width)
        conv(f"{g}.{head}.1", 1, 2 * width, 4, transposed=True)
    for name, (inside, out) in DISCRIMINATOR.items():
        channels = 2 if name == "model0.0" else inside * discriminator_width
        conv(
            f"Discrimanator.discriminator_0.{name}", 1 if name == "model5.0" else out * discriminator_width, channels, 4
        )
    return found


def buffer(name):
    """Whether this is no parameter but what a batch norm has counted."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def unused(name):
    """Whether the network registers this tensor and never touches it."""
    if ".bn1." in name or ".bn2." in name:
        return True  # every metaACON has two, and computes past them
    if not name.startswith("Generator.up"):
        return False
    level, module = int(name[len("Generator.up")]), name.split(".", 2)[2]
    idle = ["norm.mlp_shared.", "norm.metaAcon."]
    idle += ["layers."] if level < 2 else ["dcn."]
    idle += ["fc2."] if level else ["fc1.", "en_conv.", "metaAcon_en."]
    return module.startswith(tuple(idle))


def checkpoint(width=8, discriminator_width=8, seed=0):
    """A state_dict with seeded random values, of a size that keeps every part of the network alive."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(width, discriminator_width).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(123_000)
            continue
        fan = 1 if len(shape) < 4 or name[-2:] in ("p1", "p2") else shape[1] * shape[2] * shape[3]
        state[name] = torch.randn(shape, generator=random) / fan**0.5
        if "conv_offset_mask" in name:
            state[name] *= 0.5  # sampling points a pixel or so away, some of them outside the map
        if ".final_" in name and name.endswith(".1.weight"):
            state[name] *= 0.1  # pencil lines lie between the ends of tanh, not at them
    return state


def meta_acon(s, name, x):
    mean = x.mean((2, 3), keepdim=True)
    beta = F.conv2d(mean, s[f"{name}.fc1.weight"], s[f"{name}.fc1.bias"])
    beta = torch.sigmoid(F.conv2d(beta, s[f"{name}.fc2.weight"], s[f"{name}.fc2.bias"]))
    p1, p2 = s[f"{name}.p1"], s[f"{name}.p2"]
    return (p1 * x - p2 * x) * torch.sigmoid(beta * (p1 * x - p2 * x)) + p2 * x


def conv(s, name, x, stride=1, padding=1):
    return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=stride, padding=padding)


def up(s, name, x):
    return F.conv_transpose2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=2, padding=1)


def deformed(s, name, x):
    """Modulated deformable 3×3 convolution in two groups, one tap at a time, sampled by grid_sample."""
    _, channels, height, width = x.shape
    predicted = conv(s, f"{name}.conv_offset_mask", x)
    offset, mask = predicted[:, :36], predicted[:, 36:].sigmoid()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    total = s[f"{name}.bias"].view(1, -1, 1, 1)
    half = channels // 2
    for group in range(2):
        part = x[:, group * half : (group + 1) * half]
        for tap in range(9):
            index = group * 9 + tap
            y = rows + tap // 3 - 1 + offset[:, 2 * index]
            z = columns + tap % 3 - 1 + offset[:, 2 * index + 1]
            # With corners not aligned, pixel k of n lies at (2k + 1)/n − 1.
            grid = torch.stack(((2 * z + 1) / width - 1, (2 * y + 1) / height - 1), -1)
            value = F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = s[f"{name}.weight"][:, group * half : (group + 1) * half, tap // 3, tap % 3]
            total = total + torch.einsum("oc,nchw->nohw", weight, value * mask[:, index : index + 1])
    return total


def draw(state, photo, depth, style):
    """Sketch and depth of the released generator; ``style`` is 1, 2 or 3."""
    s = {name.removeprefix("Generator."): value for name, value in state.items()}
    channel = {2: 0, 3: 1, 1: 2}[style]
    rgb, par = conv(s, "down_rgb", photo, 2), conv(s, "down_par", depth, 2)
    skips = [torch.cat((rgb, par), 1)]
    for k in range(7):
        x = conv(s, f"down{k + 2}.model.1", meta_acon(s, f"down{k + 2}.model.0", skips[-1]), 2)
        skips.append(F.instance_norm(x) if k < 6 else x)
    x = skips[7]
    for k in range(7):
        name = f"up{k}"
        skip = skips[7 - k] if k else None
        joined = torch.cat((x, skip), 1) if k else x
        if k < 2:
            y = deformed(s, f"{name}.dcn", F.interpolate(joined, scale_factor=2, mode="bilinear", align_corners=False))
        else:
            y = up(s, f"{name}.layers", joined)
        styles = torch.zeros(len(photo), 3, *photo.shape[2:])
        styles[:, channel] = 1
        condition = F.interpolate(torch.cat((depth, styles), 1), size=y.shape[2:], mode="nearest")
        if k:
            appearance = meta_acon(s, f"{name}.metaAcon_en", up(s, f"{name}.en_conv", skip))
            condition = torch.cat((condition, appearance), 1)
        hidden = meta_acon(s, f"{name}.metaAcon", conv(s, f"{name}.fc{1 if k else 2}", condition))
        theta = torch.sigmoid(conv(s, f"{name}.fc3", hidden))
        linear = s[f"{name}.p1"] * y - s[f"{name}.p2"] * y
        f = linear * torch.sigmoid(theta * linear) + s[f"{name}.p2"] * y
        gamma, beta = conv(s, f"{name}.norm.mlp_gamma", hidden), conv(s, f"{name}.norm.mlp_beta", hidden)
        x = F.instance_norm(f) * (1 + gamma) + beta + f
    sketch = torch.tanh(up(s, "final_rgb.1", meta_acon(s, "final_rgb.0", torch.cat((x, rgb), 1))))
    return sketch, up(s, "final_par.1", meta_acon(s, "final_par.0", torch.cat((x, par), 1)))


def discriminate(state, depth, sketch):
    """The 35×35 map of the released discriminator."""
    s = {name.removeprefix("Discrimanator.discriminator_0."): value for name, value in state.items()}
    x = F.leaky_relu(conv(s, "model0.0", torch.cat((depth, sketch), 1), 2, 2), 0.2)
    for name, stride in (("model1.1", 2), ("model2.1", 2), ("model3.1", 1)):
        x = F.leaky_relu(conv(s, name, F.instance_norm(x), stride, 2), 0.2)
    return conv(s, "model5.0", F.leaky_relu(F.instance_norm(x), 0.2), 1, 2)
