"""bench/roofline.py, bench/counts.py and bench/chip.py: hand-computed times; made-up counts; the document."""

from __future__ import annotations

import json

import pytest

from bench import chip, counts, roofline
from bench.chip import COPY, ISSUE, LATENCY, LAUNCH, MUFU, SMS, Kernel
from bench.counts import NCHW, NHWC, Counts, Read

NOTHING = Read({}, {}, 0)


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


def test_two_sweeps_move_seven_tensors_and_turns_five():
    plane = 64, 128, 16

    def moved(state):
        kernels = counts.kernels_of(state, "ida", False, plane, "nhwc", NOTHING)
        return [(k.units * k.moved / 33.554432e6, k.units * k.cached / 33.554432e6) for k in kernels if k.units]

    assert moved("two sweeps") == [pytest.approx((2, 0)), pytest.approx((5, 0))]
    assert moved("now") == [pytest.approx((5, 2))]
    # One image is 2.1 MB: all that the op touches stays in the second-level cache.
    small = counts.kernels_of("two sweeps", "ida", False, (64, 128, 1), "nhwc", NOTHING)
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


def test_counts_of_now_are_those_that_were_read():
    kernels = [
        read_off("ida_nhwc whole<bf16, whole>", 1, (1, 1, 1)),
        read_off("ida_nhwc in_turns<bf16, none>", 2, (1, 1, 1)),
        read_off("ida_nhwc in_turns<bf16, whole>", 100, (0, 150, 32), (2, 200, 31)),
        read_off("ida_nhwc_backward in_turns<bf16, whole>", 3, (1, 1, 1)),
        read_off("ida_nchw_backward backward<bf16, whole, 2>", 4, (1, 400, 32)),
        read_off("deform_conv forward_kernel<Bf16, 64>", 5, (0, 90, 0)),
    ]
    read = counts.read_sass(kernels)
    assert read.nhwc["ida", "fwd"] == Counts(100, (150, 32), (200, 31))
    assert read.nhwc["ida", "bwd"].registers == 3
    assert read.nchw["ida", "bwd"] == (NCHW["ida", "bwd"][0], Counts(4, (0, 0), (400, 32)))
    assert read.gather == 90
    slower = Read({("ida", "fwd"): NHWC["ida", "fwd"]._replace(results=(2000, 32))}, {}, 0)
    times = [roofline.predicted("now", "ida", False, (64, 128, 16), "nhwc", read) for read in (NOTHING, slower)]
    assert times[1] > 2 * times[0]


def test_deform_conv2d_is_as_before_until_fewer_instructions_are_read():
    (before, now), (_, faster) = (next(roofline.deform_rows(read))[2:4] for read in (NOTHING, Read({}, {}, 90)))
    assert before == now
    assert float(faster) < float(before)


def test_the_model_is_within_a_quarter_of_what_was_measured():
    rows = list(roofline.measured_rows(roofline.RESULTS, NOTHING))
    assert len(rows) == 16
    assert all(abs(int(row[-1].rstrip("%").replace("−", "-"))) <= 25 for row in rows)


def test_a_step_is_what_was_measured_less_what_is_gone():
    table = "| preset | layout | kernels | cast | layout | inside |\n|---|---|---:|---:|---:|---:|\n"
    now = roofline.read_steps(table + "| small | nhwc | 1,042 | 217 | 29 | 34 |\n")
    assert now == {("small", "nhwc"): {"kernels": 1042, "cast": 217, "layout": 29, "inside": 34}}
    before, after = ({(r[0], r[1]): r for r in roofline.step_rows(given, NOTHING)} for given in ({}, now))
    assert before["small", "NCHW"] == after["small", "NCHW"]
    assert after["small", "NHWC"][2:4] == ["417 → 217", "113 → 63"]
    gone = float(before["small", "NHWC"][7]) - float(after["small", "NHWC"][7])
    assert gone == pytest.approx((200 * 2 + 50 * 24) / 1000, abs=0.11)  # µs; one digit is printed


def test_the_tables_go_between_their_marks(call, tmp_path):
    document, sass = tmp_path / "kernels.md", tmp_path / "sass.json"
    document.write_text("before\n" + "\nold\n".join(roofline.MARKS) + "\nafter\n", encoding="utf-8")
    kernels = [read_off("ida_nhwc in_turns<bf16, whole>", 100, (1, 9, 9))]
    sass.write_text(json.dumps({"kernels": kernels}), encoding="utf-8")
    words = ("bench/roofline.py", "--document", document, "--write", "--sass")
    assert call(*words, sass).returncode == 0
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{roofline.MARKS[0]}\n\n**Predicted, not measured**")
    assert text.endswith(f"|\n\n{roofline.MARKS[1]}\nafter\n")
    assert "old" not in text
    done = call(*words, document)
    assert done.returncode == 2
    assert done.stderr.startswith("roofline: '")
    assert done.stderr.count("\n") == 1
