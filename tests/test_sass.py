"""Machine code followed without a GPU: small programs by hand, the model's limits, and the committed table."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.sass import page, table
from benchmarks.sass.code import instance, parse
from benchmarks.sass.machine import Machine
from benchmarks.sass.model import blocks_per_processor, limits
from benchmarks.sass.operands import UnknownError


def run(*lines: str, constants=None, shared=None, thread=5):
    text = "\n".join(f"        /*{16 * n:04x}*/                   {line} ;  /* 0x0 */" for n, line in enumerate(lines))
    machine = Machine(parse(text), constants or {}, shared or {}, thread, lambda at: at != 0)
    return machine, machine.run()


def word(at, value):
    return {at + k: value >> 8 * k & 255 for k in range(4)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("IADD3 R2, R0, -0x1, R0", 9),
        ("IADD3 R2, P0, RZ, -R0, RZ", 2**32 - 5),
        ("LOP3.LUT R2, R0, 0x3, RZ, 0xc0, !PT", 1),
        ("LOP3.LUT R2, RZ, R9, RZ, 0x0, !PT", 0),  # R9 is unknown, and does not matter
        ("LOP3.LUT R2, R0, R1, 0xff, 0xea, !PT", 255),  # (a & b) | c
        ("IMAD R2, R0, 0x10, R0", 85),
        ("IMAD.HI R2, R0, 0x2aaaaaab, RZ", 0),
        ("SHF.R.S32.HI R2, RZ, 0x1f, R1", 2**32 - 1),
        ("SHF.R.U32.HI R2, RZ, 0x4, R1", 0x0FFFFFFF),
        ("SHF.L.U32 R2, R0, 0x3, RZ", 40),
        ("SHF.L.U64.HI R2, R1, 0x3, R0", 47),
        ("LEA R2, R0, R0, 0x3", 45),
        ("LEA.HI R2, R1, R0, RZ, 0x4", 20),
        ("PRMT R2, R0, 0x5410, R1", 0xFFF90005),
        ("VIMNMX R2, R0, R1, !PT", 5),
        ("VIMNMX.U32 R2, R0, R1, PT", 5),
        ("IABS R2, R1", 7),
        ("HFMA2.MMA R2, -RZ, RZ, 0, 0.000244140625", 0xC00),
    ],
)
def test_integers(line, expected):
    machine, _ = run("S2R R0, SR_TID.X", "MOV R1, 0xfffffff9", line, "EXIT")
    assert machine.r["R2"] == expected


def test_borrows_and_wide_products():
    machine, _ = run(
        "S2R R0, SR_TID.X",
        "MOV R1, 0xffffffff",
        "IADD3 R2, P0, R1, 0x2, RZ",
        "IADD3.X R3, RZ, RZ, RZ, P0, !PT",
        "IMAD.WIDE.U32 R4, R1, R1, R2",
        "IMAD.WIDE R6, R1, R0, RZ",
        "EXIT",
    )
    assert [machine.r[f"R{k}"] for k in range(2, 8)] == [1, 1, 2, 2**32 - 1, 2**32 - 5, 2**32 - 1]


def test_sixty_four_bits_are_compared_by_halves():
    program = ("MOV R0, {}", "MOV R1, {}", "ISETP.GE.U32.AND P0, PT, R0, 0x7, PT",
               "ISETP.GE.AND.EX P0, PT, R1, 0x1, PT, P0", "EXIT")  # fmt: skip
    for low, high in ((6, 1), (7, 1), (0, 2), (9, 0), (0, 0xFFFFFFFF)):
        lines = [line.format(hex(value)) for line, value in zip(program[:2], (low, high), strict=True)]
        machine, _ = run(*lines, *program[2:])
        value = (high - 2**32 if high >> 31 else high) << 32 | low
        assert machine.p["P0"] is (value >= (1 << 32 | 7))


def test_the_division_of_integers():
    lines = ["S2R R0, SR_TID.X", "MOV R2, 0x3", "I2F.U32.RP R4, R2", "MUFU.RCP R4, R4", "IADD3 R4, R4, 0xffffffe, RZ",
             "F2I.FTZ.U32.TRUNC.NTZ R5, R4", "IMAD.MOV.U32 R4, RZ, RZ, RZ", "IMAD.MOV R6, RZ, RZ, -R5",
             "IMAD R6, R6, R2, RZ", "IMAD.HI.U32 R5, R5, R6, R4", "IMAD.HI.U32 R7, R5, R0, RZ",
             "IMAD.MOV R8, RZ, RZ, -R7", "IMAD R8, R2, R8, R0", "ISETP.GE.U32.AND P0, PT, R8, R2, PT",
             "@P0 VIADD R7, R7, 0x1", "EXIT"]  # fmt: skip
    for thread in (0, 2, 3, 100, 255):
        machine, _ = run(*lines, thread=thread)
        assert machine.r["R7"] == thread // 3


LOOP = (
    "ULDC UR4, c[0x0][0x210]",
    "MOV R0, RZ",
    "MOV R8, 0x1000",
    "MOV R9, 0x1",
    "LDG.E.128 R4, desc[UR6][R8.64]",  # 0x40
    "LDG.E.128 R12, desc[UR6][R8.64+0x10]",
    "LDS R10, [RZ+0x400]",
    "FSETP.NEU.AND P0, PT, R10, RZ, PT",
    "@!P0 BRA 0xb0",
    "FFMA R4, R5, R10, R4",
    "FFMA R12, R13, R10, R12",
    "STG.E.128 desc[UR6][R8.64], R4",  # 0xb0
    "VIADD R0, R0, 0x1",
    "ISETP.GE.AND P1, PT, R0, UR4, PT",
    "@!P1 BRA 0x40",
    "EXIT",
)


@pytest.mark.parametrize(("weight", "inside"), [(0x3F800000, 2), (0, 0), (0x80000000, 0)])
def test_a_loop_whose_body_a_weight_decides(weight, inside):
    counts = {}
    for turns in (2, 3):
        _, trace = run(*LOOP, constants=word(0x210, turns), shared=word(0x400, weight))
        counts[turns] = trace.issued
        assert trace.loads == [(16, 0x1_0000_1000), (16, 0x1_0000_1010)] * turns
        assert len(trace.stores) == turns
        assert trace.in_flight == 32
    assert counts[3] - counts[2] == 9 + inside


def test_a_load_that_is_needed_at_once_is_alone_in_flight():
    loads = "LDG.E.128 R4, desc[UR6][R8.64]", "FADD R4, R4, 1", "LDG.E.128 R12, desc[UR6][R8.64]", "EXIT"
    assert run("MOV R8, 0x1000", "MOV R9, 0x0", *loads)[1].in_flight == 16


def test_a_branch_on_a_value_is_refused_unless_it_jumps_over_a_call():
    begin = "MOV R8, 0x8", "MOV R9, RZ", "LDG.E R0, desc[UR6][R8.64]", "FSETP.GT.AND P0, PT, R0, RZ, PT"
    with pytest.raises(UnknownError):
        run(*begin, "@P0 BRA 0x60", "FADD R1, R1, 1", "EXIT")
    _, trace = run(*begin, "@P0 BRA 0x70", "MOV R10, 0x70", "CALL.REL.NOINC 0x80", "EXIT", "RET.REL.NODEC R10 0x0")
    assert (trace.issued, trace.guesses) == (6, 1)


def test_calls_return():
    _, trace = run("MOV R10, 0x20", "CALL.REL.NOINC 0x30", "EXIT", "VIADD R0, R0, 0x1", "RET.REL.NODEC R10 0x0")
    assert trace.issued == 5


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        ("5AlikeINS0_3AllILNS_5DTypeE3ELi8EEEEE", "5Alike-3All-3-8"),
        ("5AlikeINS0_5MixedILi4EEEEE", "5Alike-5Mixed-x-4"),
        ("5MixedILi1EE", "5Mixed-x-1"),
    ],
)
def test_names_of_instances(storage, name):
    mangled = f"_ZN2fs3gpu41_GLOBAL__N__d5_9_update_cu_5113update_kernelIfNS0_{storage}Li4ELi1ELNS0_5NoiseE1ELb1EEEvNS_"
    assert instance(mangled) == f"f-{name}-4-1-1-1"
    assert instance(mangled.replace("update_kernel", "other_kernel")) is None


@pytest.mark.parametrize(("registers", "blocks"), [(32, 16), (40, 12), (48, 10), (56, 9), (57, 8), (64, 8), (128, 4)])
def test_blocks_that_fit(registers, blocks):
    assert blocks_per_processor(registers) == blocks


def test_limits():
    plenty = limits(30, 12, 4, 48, 64)
    assert plenty.in_flight == 48 and plenty.bound == "memory"
    assert plenty.needed == pytest.approx(0.75 * 26.6, rel=0.01)
    assert plenty.issue == pytest.approx(132 * 128 * 1.75e9 / 30 * 16 / 4.8e12)
    assert limits(100, 6, 2, 48, 64).bound == "issue"
    assert limits(30, 12, 4, 8, 64).bound == "latency"


def row(**changes):
    values = {f.name: "" for f in dataclasses.fields(table.Row)}
    known = {"dtype": "bf16", "terms": 3, "outputs": 1, "noise": "none", "instructions": 30.0, "registers": 60,
             "stack": 0, "blocks": 8, "loads": "3x16", "stores": "1x16"}  # fmt: skip
    return table.Row(**{**values, **known, **changes})


def test_what_is_worse_than_the_table_is_named(tmp_path):
    table.write(tmp_path / "t.csv", [row()])
    before = table.read(tmp_path / "t.csv")
    assert table.faults([row(instructions=31.4)], before) == []
    for change in ({"instructions": 31.6}, {"loads": "6x8"}, {"blocks": 7}, {"stack": 8}, {"instructions": None},
                   {"terms": 4}):  # fmt: skip
        (fault,) = table.faults([row(**change)], before)
        assert fault.startswith("bf16 K=")


def test_the_committed_table_holds_every_point_and_the_page_is_made_of_it():
    records = table.read()
    points = {(r["dtype"], r["terms"], r["outputs"], r["noise"]) for r in records}
    assert len(points) == len(records) == 5 * 8 * 3 * 3
    dense = [r for r in records if r["dtype"] in ("fp32", "bf16", "fp16") and r["noise"] != "given"]
    assert all("x16" in r["loads"] or "x8" in r["loads"] for r in dense)
    assert page.PAGE.read_text() == page.fill(page.PAGE.read_text(), records)
