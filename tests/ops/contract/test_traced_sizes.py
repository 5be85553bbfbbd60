"""torch.export and torch.compile with dynamic batch, height and width: one graph, bound to no size."""

from __future__ import annotations

from backends import each, slow
from checking import function
from operands import NAMES, adaptation, deformation
from tracing import IMAGES, Call, compiles_once, exports

# C is 6: less and more than H; one image and several; H is not W.
SIZES = (5, 7, 9), (1, 1, 1), (2, 17, 3), (8, 40, 33), (7, 3, 20), (1, 1, 5)
PER_CHANNEL, PER_PIXEL = "info_acon, switch per channel", "info_acon, switch per pixel"
EVERY = (*NAMES, PER_CHANNEL, PER_PIXEL, "deform_conv2d")
QUICK = (PER_CHANNEL, "ida activated", "deform_conv2d")
RARE = [name for name in EVERY if name not in QUICK]


def call(backend, name):
    if name == "deform_conv2d":
        return lambda x, offset, weight, bias, mask: backend.ops.deform_conv2d(x, offset, weight, bias, 1, 1, 1, mask)
    return function(backend.ops, name.split(",")[0])


def made(backend, name, n, h, w):
    if name == "deform_conv2d":
        return tuple(deformation("depthwise", batch=n, size=(h, w), device=backend.device)[0])
    logits = {PER_CHANNEL: (n, 6, 1, 1), PER_PIXEL: (n, 1, h, w)}.get(name)
    return tuple(adaptation(name.split(",")[0], (n, 6, h, w), logits, device=backend.device))


def dynamic(name, tensors):
    """Say which sizes of each tensor are dynamic; none of the parameters."""
    x, *others = tensors
    kinds = [IMAGES if t.dim() == 4 and t.shape[2:] == x.shape[2:] else None for t in (x, *others)]
    if name == PER_CHANNEL:
        kinds[1] = {0: IMAGES[0]}
    return kinds


CASES = [*((n, False) for n in EVERY), *((n, True) for n in QUICK), *slow(*((n, True) for n in RARE))]


@each(("reference", "cpu", "cuda"), "case", CASES)
def test_an_exported_op_takes_any_number_of_images_and_any_size(backend, case):
    name, strict = case
    kinds = dynamic(name, made(backend, name, *SIZES[0]))
    program = exports(Call(call(backend, name)), lambda *size: made(backend, name, *size), kinds, SIZES, strict)
    assert any("hida" in str(node.target) for node in program.graph.nodes) == (backend.name != "reference")


@each(("reference", "cpu", "cuda"), "name", [PER_CHANNEL, *slow(*(name for name in EVERY if name != PER_CHANNEL))])
def test_a_compiled_op_is_compiled_once_for_all_sizes(backend, name):
    sizes = [size for size in SIZES if 1 not in size]  # torch.compile takes a size of 1 as a constant
    compiles_once(call(backend, name), lambda *size: made(backend, name, *size), sizes)
