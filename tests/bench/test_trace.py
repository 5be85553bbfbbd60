"""What is counted without a GPU: by hand for a few operators, and that a training step avoids what it can."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from bench import trace
from bench.recipes import paper_losses
from hida.cli.run import run_command
from hida.errors import HidaError
from hida.ops import library

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this is a CPU build of torch")
NHWC = torch.channels_last


def test_a_convolution_its_casts_and_the_copies_inside():
    with trace.fake_gpu() as launches:
        layer = nn.Conv2d(3, 8, 3, padding=1).to("cuda").to(memory_format=NHWC)
        kept = [p.view_as(p).grad_fn for p in layer.parameters()]
        x = torch.zeros(2, 3, 4, 4, device="cuda")
        launches.kinds.clear()
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(x)
        assert (y.device.type, y.dtype, y.is_contiguous(memory_format=NHWC)) == ("cuda", torch.bfloat16, True)
        # x, weight and bias are cast; x is rearranged; the convolution, its bias.
        assert dict(launches.kinds) == {"cast": 3, "inside": 1, "product": 1, "elementwise": 1}
        launches.kinds.clear()
        y.float().sum().backward()
        assert layer.weight.grad.is_contiguous(memory_format=NHWC)
        del kept
    found = dict(launches.kinds)
    # To float32 and back, the gradients of weight and bias; the seed; x and the gradient, of the sum, once more.
    assert found["cast"] == 4
    assert found["product"] == 1
    assert found["inside"] == 2
    assert found["reduction"] == 2


def test_copies_are_told_apart():
    with trace.fake_gpu() as launches:
        x = torch.zeros(2, 3, 4, 4, device="cuda")
        launches.kinds.clear()
        x.contiguous(memory_format=NHWC)
        x.half()
        x.to(torch.half, memory_format=NHWC)
        x.clone()
        x.view(2, 48)[:, ::2].expand(2, 24).t()
        torch.ops.aten._unsafe_view(x, (2, 48))
        torch.cat((x, x), 1)
        functional.interpolate(x, scale_factor=2)
        x.mean()
        torch.empty_like(x)
    counts = {"layout": 1, "cast": 2, "elementwise": 1, "joined": 1, "resized": 1, "reduction": 1}
    assert launches.kinds == counts


def test_products_of_matrices_are_products_in_batches_too():
    with trace.fake_gpu() as launches:
        a, b = (torch.zeros(2, 4, 4, device="cuda") for _ in range(2))
        launches.kinds.clear()
        a @ b
        torch.baddbmm(a, a, b)
        a[0] @ b[0]
    assert dict(+launches.kinds) == {"product": 3, "elementwise": 1}


def test_an_op_that_the_library_lacks_is_no_kernel(monkeypatch):
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *of: of == ("hida::ida", "CUDA"))
    trace._require_kernel("ida")
    with pytest.raises(HidaError, match=r"_ops_cuda\.so has no leaky_norm, so it is older than the sources; build it"):
        trace._require_kernel("leaky_norm")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--presets", "small", "none"], "there is no preset 'none'"),
        (["--presets", "none.toml"], "the configuration 'none.toml' cannot be read"),
        (["--batch", "0"], "'0' is no whole number of at least 1"),
        (["--batch=-3"], "'-3' is no whole number of at least 1"),
        (["--list=-1"], "'-1' is no whole number of at least 0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_counted(capsys, words, sentence):
    try:
        status = run_command(trace.main, words, "trace")
    except SystemExit as end:
        status = end.code
    assert status == 2
    out, said = capsys.readouterr()
    assert sentence in said
    assert out == ""


def test_a_line_says_of_which_step_it_is_and_each_is_printed_once(monkeypatch, capsys):
    monkeypatch.setattr(trace, "trace", lambda *_: SimpleNamespace(kinds=Counter(cast=7), found=Counter()))
    words = ["--presets", "small", "small", "--layouts", "nhwc", "nhwc", "--batch", "4", "--precision", "fp16"]
    assert run_command(trace.main, words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| small | nhwc | 4 | fp16 | 7 | 7 | 0 |")


def test_lists_are_launched_in_pieces_of_so_many_tensors_and_blocks():
    one, large = torch.zeros(10), torch.zeros(trace.CHUNK * 321)
    assert trace._multi_tensor([[one] * 64, [one] * 64]) == 1
    assert trace._multi_tensor([[one] * 65, [one] * 65]) == 2
    assert trace._multi_tensor([[one] * 111]) == 2
    assert trace._multi_tensor([[large]]) == 2
    assert trace._multi_tensor([[one] * 36, [one] * 36, [one] * 36, [one] * 36, [], [torch.zeros(())] * 36]) == 1


@pytest.mark.skipif(not library.loaded_cuda, reason=f"the library is {library.why_not_cuda}")
@pytest.mark.slow
@pytest.mark.parametrize("nhwc", [True, False], ids=["nhwc", "nchw"])
def test_a_training_step_rearranges_nothing_and_casts_weights_together(nhwc):
    found = trace.trace(paper_losses("small"), 2, nhwc)
    assert found.kinds["inside"] == 0
    assert found.kinds["layout"] <= (3 if nhwc else 5)
    assert found.kinds["cast"] <= 53
    assert found.kinds["product"] <= 271
    assert sum(found.kinds.values()) <= 1001
    assert found.found["multi-tensor", "_foreach_copy"] == 9
