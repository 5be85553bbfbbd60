"""tools/sass.py and tools/machine_code.py, on made-up machine code with hand-counted answers, and on what was built."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import machine_code  # noqa: E402
import sass  # noqa: E402

from hida.cli.run import run_command  # noqa: E402
from hida.errors import HidaError  # noqa: E402

NHWC = "ida_nhwc kernel<bf16, whole>"
FREE = 7  # no scoreboard


def code_of(*lines):
    """Return the instructions of lines ``NAME OPERANDS | scoreboard that is set | scoreboards that are waited for``."""
    text = ["\t\tFunction : made_up"]
    for n, line in enumerate(lines):
        words, sets, waits = (*(part.strip() for part in line.split("|")), "", "")[:3]
        control = (int(sets or FREE) << 46) + (sum(1 << int(w) for w in waits.split()) << 52)
        text += [f"        /*{16 * n:04x}*/                   {words} ;      /* 0x0000000000007918 */"]
        text += [f"{'':59}/* 0x{control:016x} */"]
    return machine_code.read_functions("\n".join(text))["made_up"]


def load(register):
    return f"LDG.E.128 R{register}, desc[UR4][R2.64]"


STORE = "STG.E.128 desc[UR4][R2.64], R40"
LOOP = (
    "MOV R2, 0x0",
    load(4),  # 0x10: the loop, of 12 instructions, but 11 on the way that loads
    load(8),
    "@P0 BRA 0x70",
    load(12),
    "MUFU.EX2 R20, R21",
    "BRA 0x80",
    "IADD3 R22, R22, 0x1, RZ",  # 0x70
    "FADD R24, R5, R24",  # 0x80: R4 to R7 are waited for, while three loads are on their way
    "FADD R24, R9, R24",
    STORE,
    "ISETP.NE.AND P1, PT, R2, 0x5, PT",
    "@P1 BRA 0x10",
    load(28),
    STORE,
    "EXIT",
    "BRA 0x100",  # which nothing reaches
    "NOP",
)


def test_a_loop_is_counted_on_the_way_with_the_most_loads():
    found = sass.describe(NHWC, code_of(*LOOP))
    assert (found["instructions"], found["loads"], found["stores"], found["loops"]) == (17, 4, 2, 1)
    (loop,) = found["parts"]
    assert [loop[k] for k in ("instructions", "loads", "stores", "mufu", "in_flight")] == [11, 3, 1, 1, 3]
    assert (loop["eights"], loop["per_eight"], loop["mufu_per_eight"]) == (1, 11, 1)  # a store for eight elements


def test_of_ways_with_as_many_loads_the_shortest_is_counted():
    code = code_of(load(4), "@P0 BRA 0x40", "FADD R9, R9, R9", "FADD R9, R9, R9", "FADD R9, R9, R5", "@P1 BRA 0x0")
    assert sass.describe(NHWC, code)["parts"][0]["instructions"] == 4


@pytest.mark.parametrize(
    ("name", "sums", "results"),  # tensors that are read for the sums; tensors of results
    [
        ("ida_nhwc whole<bf16, whole>", 2, 1),
        ("ida_nhwc whole<bf16, none>", 1, 1),
        ("ida_nhwc_backward first_sweep<f16, whole>", 4, 3),
        ("ida_nhwc_backward second_sweep<f32, none>", 6, 4),
        ("info_acon_nhwc backward<bf16, plane>", 2, 1),
        ("info_acon_nchw backward<bf16, whole, 1>", 3, 2),
        ("leaky_norm_nhwc backward<bf16>", 2, 1),
        ("reduce add_chunks_kernel<float>", 0, 0),
    ],
)
def test_eight_elements_are_as_many_loads_and_stores_as_the_kernel_has_tensors(name, sums, results):
    assert sass.eights(name, {"loads": 12, "stores": 0, "tensor": 0}) == (12 / sums if sums else 0)
    assert sass.eights(name, {"loads": 1, "stores": 12, "tensor": 0}) == (12 / results if results else 0)


def test_without_a_loop_the_kernel_is_counted():
    found = sass.describe("ida_nchw forward<f32, none, 1>", code_of(load(4), load(8), "EXIT"))
    assert (found["loops"], found["in_flight"]) == (0, 2)
    assert [(part["instructions"], part["eights"]) for part in found["parts"]] == [(3, 1)]  # 32 bytes of float32


def test_of_nested_loops_the_inner_one_is_counted():
    code = code_of("MOV R2, 0x0", load(4), load(8), "FADD R9, R9, R5", "@P0 BRA 0x20", STORE, "@P1 BRA 0x10", "EXIT")
    assert [part["instructions"] for part in sass.describe(NHWC, code)["parts"]] == [3]


def test_a_way_out_of_the_usual_one_and_back_is_a_part_of_the_loop():
    lines = "MOV R2, 0x0", load(4), "BRA.DIV UR5, 0x60", "FADD R9, R9, R5", "@P0 BRA 0x10", "EXIT"
    graph = machine_code.blocks_of(code_of(*lines, "SHFL.IDX R1, R2", "BRA 0x40"))
    (blocks,) = machine_code.loops_of(graph).values()
    assert {one.at for n in blocks for one in graph[n].body} == {0x10, 0x20, 0x30, 0x40, 0x60, 0x70}


@pytest.mark.parametrize(
    ("lines", "most"),
    [
        ((load(4), load(8), "FADD R20, R5, R5", load(12), "EXIT"), 2),
        ((f"{load(4)} | 3", "IADD3 R30, R31, R32 | | 3", f"{load(12)} | 0", "EXIT"), 1),
        ((f"{load(4)} | 0", f"{load(8)} | 0", "FADD R20, R5, R5", load(12), load(16), "EXIT"), 2),
        ((f"{load(4)} | 0", f"{load(8)} | 1", "IADD3 R30, R31, R32", f"{load(12)} | 2", "EXIT"), 3),
        ((load(4), "LDG.E.64 R8, desc[UR4][R2.64]", "LDS.128 R12, [R3]", "EXIT"), 1),
        (("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", load(4), "DEPBAR.LE SB0, 0x0", load(8), "EXIT"), 2),
    ],
    ids=["used", "waited for", "one scoreboard", "free", "narrow", "copies"],
)
def test_loads_are_on_their_way_until_one_is_waited_for(lines, most):
    assert sass.describe(NHWC, code_of(*lines))["in_flight"] == most


def test_loads_of_one_round_of_a_loop_are_on_their_way_in_the_next():
    code = code_of("MOV R2, 0x0", load(4), load(8), "FADD R20, R13, R5", load(12), "@P0 BRA 0x10", "EXIT")
    assert sass.describe(NHWC, code)["parts"][0]["in_flight"] == 3


def test_a_gather_is_what_a_product_has_besides_those_of_tensor_cores():
    code = code_of(load(4), *["HMMA.16816.F32.BF16 R8, R12, R16, R8"] * 32, *["FADD R20, R5, R5"] * 98, "@P0 BRA 0x0")
    (part,) = sass.describe("deform_conv forward_kernel<Bf16, 128>", code)["parts"]
    assert (part["eights"], part["per_eight"]) == (2, 50)


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("nhwc::(anonymous namespace)::f<(hida::Dtype)2, (hida::cuda::Logits)2, 1>(A)", "f<bf16, whole, 1>"),
        ("f<hida::cuda::Bf16, (hida::cuda::(anonymous namespace)::Source)2>(B, int)", "f<Bf16, any>"),  # of a .cu file
        ("f<(hida::cuda::(anonymous namespace)::Unheard)3, (bool)1, (int)-1>(B, int)", "f<3, 1, -1>"),
    ],
)
def test_names_are_short_and_whole(demangled, short):
    mangled = "_ZN4hida4cuda4nhwc50_GLOBAL__N__7f89ba27_17_info_acon_nhwc_cu_576537907forwardILNS_5DtypeE2E"
    assert sass.short_name(mangled, f"void hida::cuda::{demangled}") == f"info_acon_nhwc {short}"


def kernel(name, flying=8, stack=0, **part):
    counts = {"spills": 0, "loads": 8, "tensor": 0, "barriers": 0, "shared": 0, "registers": 32}
    return {"name": name, "stack": stack, "parts": [{"instructions": 9, "in_flight": flying, **part}], **counts}


def test_the_goals():
    good = [kernel(NHWC), kernel("deform_conv forward_kernel<Bf16, 64>", per_eight=90), kernel("reduce any", 0)]
    assert list(sass.misses(good)) == []
    bad = [kernel(NHWC, 3), kernel("deform_conv forward_kernel<Fp16, 64>", per_eight=91), kernel("reduce any", stack=8)]
    assert [line.split(":")[0] for line in sass.misses(bad)] == [one["name"] for one in bad]
    second = kernel(NHWC)
    second["parts"] += kernel(NHWC, 2)["parts"]
    assert list(sass.misses([second])) == [f"{NHWC}: loop 2 of 2: 2 loads of 16 bytes on their way; the goal is 4"]


def test_lines_are_of_one_width_and_many_loops_are_summed_up():
    many = kernel("deform_conv_grad_input input_gradient_kernel<Bf16, 128>")
    many["parts"] = [{**many["parts"][0], "instructions": n} for n in (16, 15, 16, 100)]
    lines = sass.table([many]).splitlines()
    assert "4·(15–100)" in lines[1]
    assert {len(line) for line in lines} == {137}
    assert sass.table([kernel("b"), many]).splitlines()[2] == lines[1]


def test_what_has_changed_is_told():
    old = [kernel("ida_nhwc a"), kernel("ida_nhwc b"), kernel("ida_nhwc gone"), kernel("reduce c")]
    new = [kernel("ida_nhwc a"), kernel("ida_nhwc b", 4) | {"registers": 40}, kernel("ida_nhwc d")]
    told = [re.split(r"\s{2,}", line) for line in sass.changes(old, new, ["NHWC"])]
    assert told == [["ida_nhwc b", "regs 32 → 40, in flight 8 → 4"], ["ida_nhwc d", "new"], ["ida_nhwc gone", "gone"]]


def test_a_source_that_is_newer_than_the_library_is_named(monkeypatch, tmp_path):
    library, source = tmp_path / "hida/_ops_cuda.so", tmp_path / "csrc/cuda/a.cu"
    for n, path in enumerate((library, source)):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 + n, 1000 + n))
    monkeypatch.setattr(sass, "ROOT", tmp_path)
    monkeypatch.setattr(sass, "LIBRARY", library)
    assert sass.newer_source(library) == source
    assert sass.newer_source(source) is None
    os.utime(library, (1002, 1002))
    assert sass.newer_source(library) is None


@pytest.mark.parametrize(("flying", "status"), [(4, 0), (3, 1)])
def test_the_command_says_what_is_missed_and_keeps_what_was_read(monkeypatch, tmp_path, capsys, flying, status):
    monkeypatch.setattr(sass, "read", lambda *_: [kernel(NHWC, flying)])
    file = tmp_path / "read.json"
    try:
        found = run_command(sass.main, ["--check", "--json", str(file)])
    except SystemExit as end:
        found = end.code
    assert found == status
    assert ("MISSED" in capsys.readouterr().out) == bool(status)
    assert json.loads(file.read_text(encoding="utf-8"))["kernels"][0]["parts"][0]["in_flight"] == flying
    assert run_command(sass.main, ["--against", str(file)]) == 0
    assert "No kernel has changed." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no.so"], "there is no 'no.so'; build it"),
        (["."], "'.' is a folder"),
        (["--json", "", "no.so"], "'.' is a folder"),
        (["--against", "no.json"], "there is no 'no.json'"),
        (["--against", __file__], "was not written by --json"),
        ([__file__, "--arch", "9.0a"], "say sm_90a"),
        ([__file__], "there is no cuobjdump in CUDA_HOME"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch, tmp_path, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sass, "find_tool", lambda _: None)
    assert run_command(sass.main, words, "sass") == 2
    said = capsys.readouterr().err
    assert said.startswith("sass: ")
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_of_the_kernels_that_were_built_known_ones_miss_a_goal_by_what_is_read_by_lines():
    if not sass.LIBRARY.is_file() or sass.find_tool("cuobjdump") is None:
        pytest.skip("there is no CUDA library, or no cuobjdump")
    try:
        kernels = sass.read(sass.LIBRARY, "sm_90a", ["nhwc"])
    except HidaError as mistake:
        pytest.skip(str(mistake))
    text = sass.tool("cuobjdump", "-sass", "-arch", "sm_90a", str(sass.LIBRARY))
    functions = dict(re.findall(r"Function : (\w+)(.*?)\n\t\t\.\.\.", text, re.DOTALL))
    printed = [len(re.findall(r"LDG\.E\S*\.128", body)) for name, body in functions.items() if "nhwc_" in name]
    assert sorted(printed) == sorted(one["loads"] for one in kernels)
    missed = {line.split(":")[0] for line in sass.misses(kernels)}
    assert {re.sub(r"<(bf16|f16), (none|plane)>", "", name) for name in missed} <= {
        "ida_nhwc_backward second_sweep",
        "ida_nhwc_backward whole",
    }
