"""bench/roofline.py, bench/counts.py and bench/chip.py: hand-computed times; made-up counts; the document."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import chip, counts, roofline
from bench.chip import COPY, ISSUE, LATENCY, LAUNCH, MUFU, SMS, Kernel
from bench.counts import NCHW, NHWC, OPS, Counts, Read
from hida.cli.run import run_command

# As if the kernels of now were those of two sweeps; leaky_norm had none then.
LIKE_BEFORE = {("leaky_norm", d): NHWC["instance_norm_modulate", d] for d in counts.DIRECTIONS}
SAME = Read({**NHWC, **LIKE_BEFORE}, NCHW, roofline.GATHER)


def test_one_who_waits_does_one_thing_after_the_other():
    # Each of the 132 blocks: 10 rounds of a microsecond at memory, one of instructions, and a latency.
    bytes_of_a_microsecond = COPY / SMS * 1e-6
    kernel = Kernel(10 * SMS, SMS, bytes_of_a_microsecond, 0, chip.CLOCK * 1e-6 * ISSUE)
    at_the_cache = bytes_of_a_microsecond / (chip.L2 / SMS)
    assert kernel.seconds() == pytest.approx(LAUNCH + 10 * (2e-6 + at_the_cache + LATENCY))


def test_many_who_wait_take_what_the_slowest_takes():
    for work, slow in (({"moved": COPY / SMS * 1e-6}, 1), ({"instructions": chip.CLOCK * 2e-6 * ISSUE}, 2)):
        kernel = Kernel(1000 * SMS, 1000 * SMS, resident=200, **work)
        assert kernel.seconds() == pytest.approx(slow * 1e-3, rel=0.01)
    assert Kernel(1000 * SMS, 1000 * SMS, mufu=chip.CLOCK * 1e-6 * MUFU, resident=200).seconds() > 1e-3


def test_two_of_equal_work_at_two_servers_are_served_two_thirds_of_the_time():
    assert chip.throughput(1, [1.0, 1.0], 0) == pytest.approx(1 / 2)
    assert chip.throughput(2, [1.0, 1.0], 0) == pytest.approx(2 / 3)
    assert chip.throughput(3, [1.0, 1.0], 0) == pytest.approx(3 / 4)
    assert chip.throughput(2, [1.0], 9.0) == pytest.approx(2 / (9 + 1.1))


@pytest.mark.parametrize(("registers", "threads", "blocks"), [(128, 256, 2), (64, 256, 4), (55, 512, 2), (16, 32, 32)])
def test_registers_and_threads_limit_the_blocks_of_a_multiprocessor(registers, threads, blocks):
    assert chip.resident(registers, threads) == blocks


def test_the_floor_is_the_bytes_at_the_speed_of_a_copy():
    # 16 × 64 × 128 × 128 numbers of two bytes: 33.55 MB; five and seven times that.
    assert counts.floor_of("ida", False, (64, 128, 16)) == pytest.approx(5 * 33.554432 / 3)
    assert counts.floor_of("ida", True, (64, 128, 16)) == pytest.approx(7 * 33.554432 / 3)


def test_two_sweeps_move_seven_tensors():
    plane = 64, 128, 16

    def moved(state):
        kernels = counts.kernels_of(state, "ida", False, plane, "nhwc", SAME)
        return [(k.units * k.moved / 33.554432e6, k.units * k.cached / 33.554432e6) for k in kernels if k.units]

    assert moved("two sweeps") == moved("now") == [pytest.approx((2, 0)), pytest.approx((5, 0))]
    # One image is 2.1 MB: all that the op touches stays in the second-level cache.
    small = counts.kernels_of("two sweeps", "ida", False, (64, 128, 1), "nhwc", SAME)
    assert [k.moved / counts.EIGHTS for k in small] == [2, 3]


@pytest.mark.parametrize(
    ("plane", "blocks", "threads"),
    [
        ((64, 128, 16), 512, 256),  # eight groups of channels, 32 lanes: 32 chunks of 512 pixels for each image
        ((64, 128, 4), 256, 256),  # 128 blocks were too few: four groups, 64 lanes, 32 chunks of two tiles
        ((256, 32, 16), 256, 256),
        ((512, 16, 4), 128, 512),  # tiles of two groups, and still no block for each multiprocessor
    ],
)
def test_tiles_are_those_of_the_host_code(plane, blocks, threads):
    assert counts.tiles("ida", plane) == (blocks, threads)


def read_off(name, registers=100, *parts):
    keys = ("stores", "per_eight", "mufu_per_eight")
    return {"name": name, "registers": registers, "parts": [dict(zip(keys, part, strict=True)) for part in parts]}


def all_read():
    """Return what tools/sass.py would write, of all kernels that the tables need."""
    cases = itertools.product(OPS, (False, True), counts.LAYOUTS)
    names = [name for case in cases for name in counts.names_of(*case)]
    return [read_off(name, 100, (1, 100, 9)) for name in (*names, counts.GATHER_KERNEL)]


def test_counts_of_now_are_those_that_were_read():
    mine = {
        "ida_nhwc first_sweep<bf16, whole>": (90, (0, 150, 32)),
        "ida_nhwc second_sweep<bf16, whole>": (80, (2, 200, 31)),
        "ida_nhwc_backward first_sweep<bf16, whole>": (2, (0, 1, 1)),
        "ida_nhwc_backward second_sweep<bf16, whole>": (3, (1, 1, 1)),
        "ida_nchw_backward backward<bf16, whole, 2>": (4, (1, 400, 32)),
        "leaky_norm_nhwc_backward first_sweep<bf16>": (5, (0, 1, 1)),
        "leaky_norm_nhwc_backward second_sweep<bf16>": (4, (1, 1, 1)),
        "info_acon_nhwc forward<bf16, plane>": (6, (1, 1, 1)),
        counts.GATHER_KERNEL: (5, (0, 90, 0)),
    }
    kernels = {one["name"]: one for one in all_read()}
    assert {*mine} <= {*kernels}
    kernels |= {name: read_off(name, *of) for name, of in mine.items()}
    read = counts.read_sass(list(kernels.values()))
    assert read.nhwc["ida", "fwd"] == Counts(90, (150, 32), (200, 31))
    assert read.nhwc["ida", "bwd"].registers == 3
    assert read.nhwc["leaky_norm", "bwd"].registers == 5
    assert read.nhwc["info_acon, θ per plane", "fwd"].registers == 6
    assert read.nchw["ida", "bwd"][1] == Counts(4, (0, 0), (400, 32))
    assert read.gather == 90
    slower = SAME._replace(nhwc={("ida", "fwd"): NHWC["ida", "fwd"]._replace(results=(2000, 32))})
    times = [roofline.predicted("now", "ida", False, (64, 128, 16), "nhwc", read) for read in (SAME, slower)]
    assert times[1] > 2 * times[0]


def test_what_was_not_read_is_not_known():
    for row in roofline.op_rows(None, "general"):
        assert (row[4], row[5], row[8], row[9]) == ("–", "–", "–", "–")
    assert {row[3] for row in roofline.deform_rows(None)} == {"–"}
    with pytest.raises(ValueError, match="read"):
        roofline.predicted("now", "ida", False, (64, 128, 16), "nhwc", None)


def test_large_maps_of_deform_conv2d_are_as_before_until_fewer_instructions_are_read():
    (before, now), (_, faster) = (next(roofline.deform_rows(read))[2:4] for read in (SAME, SAME._replace(gather=90)))
    assert before == now
    assert float(faster) < float(before)


def test_the_model_is_within_a_quarter_of_what_was_measured():
    rows = list(roofline.measured_rows(roofline.specialised(roofline.RESULTS)))
    assert len(rows) == 16
    assert all(abs(int(row[-1].rstrip("%").replace("−", "-"))) <= 25 for row in rows)


HEAD = f"| preset | layout | batch | precision | kernels | {' | '.join(roofline.KINDS)} |\n"


def row_of(preset, layout, batch=16, precision="bf16", **more):
    kernels = {**roofline.STEPS[preset, layout].kernels, **more}
    numbers = " | ".join(f"{kernels[kind]:,}" for kind in roofline.KINDS)
    return f"| {preset} | {layout} | {batch} | {precision} | {sum(kernels.values()):,} | {numbers} |\n"


def test_a_step_is_what_was_measured_less_what_is_gone():
    same = roofline.read_steps(HEAD + row_of("small", "nhwc"))
    now = roofline.read_steps(HEAD + row_of("small", "nhwc", cast=217, inside=34, product=272))
    assert same == {("small", "nhwc"): {"kernels": 1530, **roofline.STEPS["small", "nhwc"].kernels}}
    before, after = ({(r[0], r[1]): r for r in roofline.step_rows(given, SAME)} for given in (same, now))
    assert before["small", "NCHW"] == after["small", "NCHW"]
    assert after["small", "NCHW"][2:5:2] == ["417 → –", "0.70 → –"]
    assert after["small", "NCHW"][7] == after["small", "NCHW"][9] == "–"
    assert after["small", "NHWC"][2:4] == ["417 → 217", "113 → 63"]
    gone = float(before["small", "NHWC"][7]) - float(after["small", "NHWC"][7])
    # µs; one digit is printed. Five products more are kernels as any other.
    assert gone == pytest.approx((200 * 2 + 50 * 24 - 5 * 13.9) / 1000, abs=0.11)
    (unread,) = [row for row in roofline.step_rows(now, None) if row[:2] == ["small", "NHWC"]]
    assert (unread[2], unread[7], unread[9]) == ("417 → 217", "–", "–")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of a document, what was read and what was counted, and in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels.md").write_text("before\n" + "\nold\n".join(roofline.MARKS) + "\nafter\n", encoding="utf-8")
    write_sass(tmp_path)
    (tmp_path / "trace.txt").write_text(HEAD + "".join(row_of(*key) for key in roofline.STEPS), encoding="utf-8")
    return tmp_path


def write_sass(folder, arch="sm_90a", without=""):
    kernels = [one for one in all_read() if one["name"] != without]
    (folder / "sass.json").write_text(json.dumps({"arch": arch, "kernels": kernels}), encoding="utf-8")


WRITE = ["--document", "kernels.md", "--write", "--sass", "sass.json", "--step", "trace.txt"]


def test_the_tables_go_between_their_marks(files):
    assert run_command(roofline.main, WRITE) == 0
    text = (files / "kernels.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{roofline.MARKS[0]}\n\n**Predicted, not measured**, with the kernels as built")
    assert text.endswith(f"|\n\n{roofline.MARKS[1]}\nafter\n")
    assert "old" not in text


@pytest.mark.parametrize(
    ("spoil", "words", "sentence"),
    [
        (None, WRITE[:5], "--write needs both --sass and --step"),
        (None, [*WRITE[:3], *WRITE[5:]], "--write needs both --sass and --step"),
        (None, ["--sass", "no.json"], "there is no 'no.json'; make it with python tools/sass.py --json sass.json."),
        (None, ["--step", "no.txt"], "there is no 'no.txt'; make it with python bench/trace.py > trace.txt."),
        (None, ["--sass", "trace.txt"], "'trace.txt' is not what tools/sass.py writes"),
        (None, ["--step", "sass.json"], "it has no table of that command"),
        (None, ["--results", "trace.txt"], "'trace.txt' is not what bench/results.py writes"),
        (None, ["--document", "no.md", *WRITE[2:]], "there is no 'no.md'"),
        (None, ["--document", ".", *WRITE[2:]], "'.' is a folder"),
        (None, ["--document", "trace.txt", *WRITE[2:]], "'trace.txt' has not one pair of the lines"),
        (lambda f: write_sass(f, "sm_80"), WRITE, "'sass.json' is of sm_80"),
        (
            lambda f: write_sass(f, without="leaky_norm_nhwc second_sweep<bf16>"),
            ["--sass", "sass.json"],
            "'sass.json' lacks the kernel leaky_norm_nhwc second_sweep<bf16>",
        ),
        (
            lambda f: (f / "trace.txt").write_text(HEAD + row_of("small", "nhwc"), encoding="utf-8"),
            WRITE,
            "'trace.txt' lacks small in nchw, released in nhwc, released in nchw",
        ),
        (
            lambda f: (f / "trace.txt").write_text(HEAD + row_of("small", "nhwc", 8, "fp16"), encoding="utf-8"),
            ["--step", "trace.txt"],
            "a row is of batch 8 in fp16",
        ),
        (
            lambda f: (f / "trace.txt").write_text(HEAD + row_of("small", "nhwc", hida=0), encoding="utf-8"),
            ["--step", "trace.txt"],
            "a row has no operators of HIDA",
        ),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_printed(files, capsys, spoil, words, sentence):
    if spoil:
        spoil(files)
    document = (files / "kernels.md").read_bytes()
    assert run_command(roofline.main, words, "roofline") == 2
    out, said = capsys.readouterr()
    assert said.startswith("roofline: ")
    assert sentence in said
    assert (said.count("\n"), out) == (1, "")
    assert (files / "kernels.md").read_bytes() == document


def test_a_reader_who_leaves_ends_it_quietly(call):
    done = call("bench/roofline.py", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    root = Path(roofline.__file__).parents[1]
    command = f"{sys.executable} bench/roofline.py | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, encoding="utf-8", check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
