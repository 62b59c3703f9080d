"""What is read from machine code, of short pieces of it: scripts/sass.py, loads_in_flight.py and cuda_figures.py."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from scripts import sass
from scripts.cuda_figures import Figure, fits
from scripts.loads_in_flight import loads_in_flight
from scripts.sass import Kernel, Loop

PRINTED = """\
	.target	sm_90

	.elftype	@"ET_EXEC"


//--------------------- .text._Z1fPf --------------------------
	.section	.text._Z1fPf,"ax",@progbits
	.align	128
        .global         _Z1fPf
        .type           _Z1fPf,@function
        .size           _Z1fPf,(.L_x_3 - _Z1fPf)
        .other          _Z1fPf,@"STO_CUDA_ENTRY STV_DEFAULT"
_Z1fPf:
.text._Z1fPf:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.64.CONSTANT R4, desc[UR8][R2.64+0x10] ;
        /*0020*/                   BRX R8 -0x30                                 (*"BRANCH_TARGETS .L_x_0,.L_x_1"*);
.L_x_0:
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/               @P1 EXIT ;
        /*0050*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*0060*/                   EXIT ;
        .weak           $__internal_0_$__cuda_sm20_div_s64
        .type           $__internal_0_$__cuda_sm20_div_s64,@function
$__internal_0_$__cuda_sm20_div_s64:
        /*0070*/                   RET.REL.NODEC R2 `(_Z1fPf) ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
        /*0090*/                   NOP;
.L_x_3:
//--------------------- .text._Z1gv --------------------------
	.section	.text._Z1gv,"ax",@progbits
.text._Z1gv:
        /*0000*/                   EXIT ;
"""


def kernel(*lines: str) -> Kernel:
    """What is compiled of instructions and labels, which end in a colon."""
    text = ["\t.target\tsm_90", '\t.section\t.text.f,"ax",@progbits']
    for i, line in enumerate(lines):
        text.append(line if line.endswith(":") else f"        /*{i:04x}*/                   {line} ;")
    (found,) = sass.parse("\n".join(text))
    return found


def once(loop: Loop) -> float:
    return 1


def load(register: int, width: str = "", predicate: str = "") -> str:
    return f"{predicate}LDG.E{width} R{register}, desc[UR4][R2.64]"


def test_what_the_disassembler_prints_is_read() -> None:
    first, second = sass.parse(PRINTED)
    assert (first.name, first.architecture, second.name) == ("_Z1fPf", "sm_90", "_Z1gv")
    second_of_first = first.blocks[0].instructions[1]
    assert (second_of_first.offset, second_of_first.predicate) == (0x10, "!P0")
    assert (second_of_first.opcode, second_of_first.operands) == ("LDG.E.64.CONSTANT", "R4, desc[UR8][R2.64+0x10]")
    assert second_of_first.registers == (frozenset({2, 3}), frozenset({4, 5}))
    # A table of jumps leads to both; a call and a conditional exit lead on; nothing leads to what is called, or behind.
    assert [[hex(place.offset) for place in first.blocks[i].instructions] for i in sorted(first.order)] == [
        ["0x0", "0x10", "0x20"],
        ["0x30"],
        ["0x40"],
        ["0x50", "0x60"],
    ]
    assert [first.blocks[i].successors for i in sorted(first.order)] == [[1, 2], [], [3], []]


@pytest.mark.parametrize(
    ("text", "reads", "writes"),
    [
        ("FFMA R4, R5.reuse, -R6, |R7|", {5, 6, 7}, {4}),
        ("LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x10]", {2, 3}, {8, 9, 10, 11}),
        ("STG.E.128 desc[UR4][R2.64], R8", {2, 3, 8, 9, 10, 11}, set()),
        ("SHFL.BFLY PT, R7, R5, 0x10, 0x1f", {5}, {7}),
        ("LOP3.LUT P0, R9, R6, 0x3, RZ, 0xc0, !PT", {6}, {9}),
        ("ISETP.GE.U32.AND P0, PT, R4, R5, PT", {4, 5}, set()),
        ("IMAD.WIDE.U32 R8, R4, 0x8, R6", {4, 6}, {8, 9}),
        ("LDGSTS.E.BYPASS.128 [R11+-0x3000], desc[UR10][R6.64]", {6, 7, 11}, set()),
    ],
)
def test_registers(text: str, reads: set[int], writes: set[int]) -> None:
    (instruction,) = kernel(text).blocks[0].instructions
    assert tuple(map(set, instruction.registers)) == (reads, writes)


def test_loads_before_the_first_use_are_in_flight() -> None:
    four = [load(8, ".128"), load(12, ".128"), load(16, ".128"), load(20, ".128")]
    loop = kernel(".L_x_1:", *four, "FADD R0, R0, R8", "FADD R0, R0, R12", "@P0 BRA `(.L_x_1)", "EXIT")
    assert loads_in_flight(loop) == 4
    serial = kernel(".L_x_1:", four[0], "FADD R0, R0, R8", four[1], "FADD R0, R0, R12", "@P0 BRA `(.L_x_1)", "EXIT")
    assert loads_in_flight(serial) == 1
    # A use ends the flight of what was issued before it, and no other.
    rolling = kernel(load(4), load(5), "FADD R0, R0, R4", load(6), load(7), "FADD R0, R0, R5", "EXIT")
    assert loads_in_flight(rolling) == 3
    chain = kernel(load(2, ".64"), load(4), load(5), "EXIT")  # the address is what was loaded
    assert loads_in_flight(chain) == 2


@pytest.mark.parametrize(("register", "expected"), [(8, 1), (11, 1), (12, 2)])
def test_a_wide_load_is_used_by_any_of_its_registers(register: int, expected: int) -> None:
    found = kernel(load(8, ".128"), f"FADD R0, R0, R{register}", load(16, ".128"), "FADD R0, R8, R16", "EXIT")
    assert loads_in_flight(found) == expected


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ("@P0 MOV R4, RZ", 2),  # in the place of the load: never both
        ("@!P0 MOV R4, RZ", 1),
        ("MOV R4, RZ", 1),
        ("@P0 FADD R0, R0, R4", 2),
        ("@P1 FADD R0, R0, R4", 1),
    ],
)
def test_what_is_done_instead_of_a_load_does_not_wait_for_it(between: str, expected: int) -> None:
    found = kernel(load(4, predicate="@!P0 "), between, load(5), "FADD R0, R4, R5", "EXIT")
    assert loads_in_flight(found) == expected


def test_a_predicate_that_is_computed_anew_is_another_one() -> None:
    middle = ["ISETP.GE.AND P0, PT, R9, RZ, PT", "@P0 MOV R4, RZ"]
    found = kernel(load(4, predicate="@!P0 "), *middle, load(5), "FADD R0, R4, R5", "EXIT")
    assert loads_in_flight(found) == 1


def test_of_two_ways_the_one_with_more_loads_counts() -> None:
    ways = [load(4), load(5), "BRA `(.L_x_2)", ".L_x_1:", load(6), ".L_x_2:", load(7), "FADD R0, R4, R7", "EXIT"]
    assert loads_in_flight(kernel("@P0 BRA `(.L_x_1)", *ways)) == 3
    skipped = ["@P0 BRA `(.L_x_1)", load(4), ".L_x_1:", "@P1 BRA `(.L_x_2)", load(5), ".L_x_2:", "FADD R0, R4, R5"]
    assert loads_in_flight(kernel(*skipped, "EXIT")) == 2


def test_copies_to_shared_memory_are_in_flight_until_they_are_waited_for() -> None:
    copy = "LDGSTS.E.BYPASS.128 [R11], desc[UR10][R6.64]"
    group = [copy, copy, copy, "LDGDEPBAR"]
    assert loads_in_flight(kernel(*group, "DEPBAR.LE SB0, 0x0", copy, "EXIT")) == 3
    assert loads_in_flight(kernel(*group, *group, "DEPBAR.LE SB0, 0x1", copy, copy, "EXIT")) == 6
    assert loads_in_flight(kernel(*group, *group, "DEPBAR.LE SB0, 0x1", *group, *group, "EXIT")) == 9
    assert loads_in_flight(kernel(*group, load(4), "FADD R0, R0, R4", load(5), "EXIT")) == 4


# A loop with two loads, in one that stores what the first has summed up in one of two ways.
NESTED = kernel(
    "MOV R0, RZ",
    ".L_x_1:",
    "MOV R4, RZ",
    ".L_x_2:",
    load(8),
    load(9),
    "FADD R4, R8, R9",
    "@P0 BRA `(.L_x_2)",
    "@P1 BRA `(.L_x_3)",
    "FADD R4, R4, R4",
    "STG.E desc[UR4][R6.64], R4",
    "BRA `(.L_x_4)",
    ".L_x_3:",
    "STS [R7], R4",
    ".L_x_4:",
    "@P2 BRA `(.L_x_1)",
    load(10),
    load(11),
    load(12),
    "EXIT",
)


def test_loops_are_found_with_those_inside_of_them() -> None:
    outer, inner = NESTED.loops
    assert outer.inner == [inner]
    assert inner.inner == []
    assert NESTED.kinds(inner.blocks) == {"LDG": 2, "FADD": 1, "BRA": 1}
    assert NESTED.kinds(outer.own) == {"MOV": 1, "BRA": 3, "FADD": 1, "STG": 1, "STS": 1}
    # The loads behind the loops are more, but done once.
    assert loads_in_flight(NESTED) == 2
    assert loads_in_flight(NESTED, NESTED.order) == 3


def test_a_jump_back_to_what_does_not_always_come_before_is_no_loop() -> None:
    """As where a diverged warp returns from what it has done out of line."""
    found = kernel("BRA.DIV UR4, `(.L_x_2)", "MOV R4, R5", ".L_x_1:", "EXIT", ".L_x_2:", "MOV R4, R6", "BRA `(.L_x_1)")
    assert found.loops == []
    assert found.kinds(found.order) == {"BRA": 1, "MOV": 1, "EXIT": 1}
    taken = kernel("@P0 BRA `(.L_x_2)", "MOV R4, R5", ".L_x_1:", "EXIT", ".L_x_2:", "MOV R4, R6", "BRA `(.L_x_1)")
    assert taken.loops == []
    assert taken.count(taken.longest_path(taken.order, once)) == 4


def test_the_longest_way_takes_a_loop_as_often_as_it_is_said() -> None:
    outer, inner = NESTED.loops
    assert NESTED.count(NESTED.longest_path(inner.blocks, once)) == 4
    assert NESTED.count(NESTED.longest_path(outer.blocks, once)) == 1 + 4 + 1 + 3 + 1
    trips = {outer.head: 3, inner.head: 5}
    way = NESTED.longest_path(NESTED.order, lambda loop: trips[loop.head])
    assert NESTED.count(way) == 1 + 3 * (1 + 5 * 4 + 1 + 3 + 1) + 4
    assert NESTED.count(way, "LDG") == 3 * 5 * 2 + 3
    assert NESTED.count(way, "STS") == 0


def test_the_longest_way_leads_around_a_loop_of_no_trips() -> None:
    found = kernel("@P0 BRA `(.L_x_2)", ".L_x_1:", load(4), "@P1 BRA `(.L_x_1)", ".L_x_2:", "EXIT")
    assert found.count(found.longest_path(found.order, once)) == 4
    assert found.count(found.longest_path(found.order, lambda _: 0)) == 2


def test_the_longest_way_ends_at_the_exit_that_is_asked_for() -> None:
    found = kernel("MOV R4, RZ", "@P0 EXIT", "@P1 BRA `(.L_x_1)", "MOV R5, RZ", "EXIT", ".L_x_1:", "EXIT")
    ways = [found.longest_path(found.order, once, exit) for exit in (None, 0, 1, 2, 3)]
    assert [found.count(way) for way in ways] == [5, 2, 5, 4, 0]
    assert figure(units=1, exit=0).measure(found) == {"instructions": 2, "loads": 0}


def test_a_trip_ends_where_it_began_whatever_else_may_end_it() -> None:
    found = kernel(".L_x_1:", load(4), load(5), load(6), "@P0 EXIT", "@P1 BRA `(.L_x_1)", "EXIT")
    (loop,) = found.loops
    assert found.count(found.longest_path(loop.blocks, once)) == 5
    back = {i for i in loop.blocks if not found.count({i: 1}, "BRA")}
    assert found.longest_path(back, once) == {}


def test_words_say_which_code_it_is() -> None:
    outer, inner = NESTED.loops
    assert fits(NESTED, inner.blocks, "LDG*2 !STG")
    assert not fits(NESTED, inner.blocks, "LDG*3")
    assert not fits(NESTED, outer.blocks, "LDG !STG")
    assert fits(NESTED, outer.own, "STG.E !LDG !LDG.128")


def figure(**options: object) -> Figure:
    return Figure("op", "f<float>", "forward", **({"unit": "an element", "units": 4} | options))  # type: ignore[arg-type]


def test_a_figure_is_what_a_way_takes_an_element() -> None:
    assert figure(loop="LDG").measure(NESTED) == {"instructions": 1.0, "loads": 2}
    assert figure(loop="LDG", each="LDG").measure(NESTED) == {"instructions": 0.5, "loads": 2}
    row = figure(loop="STG", trips={"LDG": 5})
    assert row.measure(NESTED) == {"instructions": 26 / 4, "loads": 2}
    short = figure(loop="STS", trips={"LDG": 5}, never=("STG.E",))
    assert short.measure(NESTED) == {"instructions": 24 / 4, "loads": 2}
    assert figure(loop="MOV", trips={"LDG": 5}, never=("STS !LDG",)).measure(NESTED) == row.measure(NESTED)
    whole = figure(units=1, trips={"LDG": 5, "STG": 3})
    assert whole.measure(NESTED) == {"instructions": 83, "loads": 3}


def test_of_several_loops_that_fit_a_figure_is_of_the_longest() -> None:
    lines = []
    for label, loads in (("1", 4), ("2", 1)):
        uses = [f"FADD R0, R0, R{4 + i}" for i in range(loads)]
        lines += [f".L_x_{label}:", *(load(4 + i) for i in range(loads)), *uses, f"@P0 BRA `(.L_x_{label})"]
    unrolled_and_rest = kernel(*lines, "EXIT")
    assert figure(loop="LDG", units=1, each="LDG").measure(unrolled_and_rest) == {"instructions": 9 / 4, "loads": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loop": "LDG.128"}, "no way leads through a loop with LDG.128$"),
        (
            {"loop": "LDG", "never": ("FADD !STG", "STS")},
            "a loop with LDG, never one with FADD !STG, never one with STS$",
        ),
        ({"loop": "STG"}, "no trips are given for the loop at 0004"),
        ({"loop": "LDG", "each": "LDG.128"}, "no LDG.128 is on the way"),
    ],
)
def test_a_figure_says_what_a_kernel_lacks(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figure(**options).measure(NESTED)


def test_the_disassembler_is_looked_for_where_pip_put_it_then_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", is_missing)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SystemExit, match="there is no nvdisasm to read machine code with: pip install nvidia-cuda"):
        sass.find_nvdisasm()
    toolkit = tmp_path / "cuda" / "bin"
    for folder in (toolkit, tmp_path / "bin"):
        folder.mkdir(parents=True)
    for program in (toolkit / "nvcc", toolkit / "nvdisasm"):
        program.touch(mode=0o755)
    (tmp_path / "bin" / "nvcc").symlink_to(toolkit / "nvcc")
    assert sass.find_nvdisasm() == toolkit / "nvdisasm"
    (tmp_path / "bin" / "nvdisasm").touch(mode=0o755)
    assert sass.find_nvdisasm() == tmp_path / "bin" / "nvdisasm"


def test_a_file_that_the_disassembler_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "find_nvdisasm", lambda: Path("ls"))  # which says that there is no such file, too
    with pytest.raises(SystemExit, match=r"x\.cubin: nvdisasm cannot read it: .*No such file"):
        sass.disassemble(tmp_path / "x.cubin")
