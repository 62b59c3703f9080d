"""What chosen CUDA kernels take an element, a row or an output, counted in their machine code: which, and how.

A figure is the number of instructions that a warp issues on the longest way through the code, over the number of
elements that this treats. It is a bound: no thread need go that way, and the rare code that lies on it counts too,
unless `never` leaves it out. Add a figure to FIGURES, and see the loops of its kernel by

    python -m scripts.cuda_resources --show 'wide_rows<__nv_bfloat16, true>' --architecture sm_90

Loops and code are told apart by words, the kinds of their instructions: `LDG.128 LDS*4 !STG` is code that has a load
of 128 bits from global memory, at least four loads from shared memory, and no store to global memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scripts.loads_in_flight import loads_in_flight
from scripts.sass import Kernel, Loop


@dataclass(frozen=True)
class Figure:
    file: str
    kernel: str
    name: str
    unit: str  # "an element"
    units: float  # that are treated by what is counted: one trip of the loop, or the kernel
    each: str = ""  # a word: `units` are those of each such instruction on the way
    loop: str = ""  # words that a loop fits without those inside of it; of several the longest. "": the whole kernel
    # Of the loops inside, by words that they fit, the first count; 0: the way leads around it. Several counts are for
    # those that fit the words in turn, in the order of their addresses.
    trips: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    exit: int | None = None  # of the whole kernel: which EXIT ends the way, by their addresses; None: any
    never: tuple[str, ...] = ()  # words of blocks that the way does not lead through
    at_most: float | None = None  # instructions, whatever the table says
    at_least: int | None = None  # loads in flight, whatever the table says
    architectures: tuple[str, ...] = ("sm_90",)

    def measure(self, kernel: Kernel) -> dict[str, float]:
        """Instructions a unit, and loads in flight on the way; ValueError where the kernel has no such code."""
        code = {i for i in kernel.order if not any(fits(kernel, [i], words) for words in self.never)}

        def loops_with(words: str) -> list[Loop]:
            return [loop for loop in kernel.loops if fits(kernel, loop.own & code, words)]

        def trips(loop: Loop) -> float:
            for words, counts in self.trips.items():
                if not fits(kernel, loop.own & code, words):
                    continue
                if not isinstance(counts, tuple):
                    return counts
                heads = [other.head for other in loops_with(words)]
                return counts[heads.index(loop.head) % len(counts)]
            raise ValueError(f"no trips are given for the loop at {kernel.blocks[loop.head].offset:04x}")

        places = [loop.blocks & code for loop in loops_with(self.loop)] if self.loop else [code]
        ways = [kernel.longest_path(blocks, trips, self.exit) for blocks in places]
        way = max(ways, key=kernel.count, default={})
        if not way:
            where = f"a loop with {self.loop}" if self.loop else "it"
            raise ValueError(
                f"no way leads through {where}" + "".join(f", never one with {words}" for words in self.never)
            )
        units = self.units * (kernel.count(way, self.each) if self.each else 1)
        if units == 0:
            raise ValueError(f"no {self.each} is on the way")
        return {"instructions": round(kernel.count(way) / units, 2), "loads": loads_in_flight(kernel, way)}


def fits(kernel: Kernel, blocks: Iterable[int], words: str) -> bool:
    """Whether some blocks have the instructions that the words name, and none of those after a `!`."""
    way = dict.fromkeys(blocks, 1.0)
    for word in words.split():
        kind, _, least = word.lstrip("!").partition("*")
        if (kernel.count(way, kind) >= int(least or 1)) == word.startswith("!"):
            return False
    return True


FIGURES = [
    # Vectors of 8 classes; rows' first and last ones by the element are left out.
    Figure(
        "cross_entropy",
        "wide_rows<__nv_bfloat16, true, true>",
        "forward",
        unit="an element",
        units=8,
        each="LDG.128",
        loop="LDG.128 !F2FP",
        never=("LDG.U16",),
        at_most=7,
        at_least=4,
    ),
    Figure(
        "cross_entropy",
        "wide_rows<__nv_bfloat16, true, true>",
        "backward",
        unit="an element",
        units=8,
        each="LDG.128",
        loop="LDG.128 F2FP",  # which packs gradients
        never=("LDG.U16", "STG.U16"),
        at_most=12,
        at_least=4,
    ),
    *(
        Figure(
            "log_probs",
            f"{kernel}<__nv_bfloat16, true, true>",
            name,
            unit="an element",
            units=8,
            each="LDG.128",
            loop=loop,
            never=("LDG.U16", "STG.U16"),
            at_most=12,
            at_least=4,
        )
        for kernel, name, loop in (
            ("log_probs_of_rows", "forward", "LDG.128 !F2FP"),
            ("log_probs_gradient_of_rows", "backward", "LDG.128 F2FP"),
        )
    ),
    # A thread a row, 256 a block: of their 864 vectors 3 or 4 a thread. 27 classes are a whole chunk. What divides by
    # the mean's denominator is for gradients, and behind the exit.
    Figure(
        "cross_entropy",
        "narrow_rows<__nv_bfloat16, true>",
        "forward, C = 27",
        unit="a row",
        units=32,
        trips={
            "LDGSTS": 27 / 8,
            "LDG STS": 1 / 8,  # what is not a whole vector, for one warp
            "MUFU.EX2*20": 1,
            "SHFL": 0,
            "MUFU": 0,
        },
        exit=0,
        never=("CALL", "MUFU.RCP"),
        at_most=18,
    ),
    # tanh, the one activation with a reciprocal and no exponential beside it that takes a call.
    *(
        Figure(
            "embedding_linear",
            f"sum_table_rows<{storage}, 4>",
            "forward, T = 3",
            unit="an output",
            units=32,  # 8 rows of 4 columns
            loop=store,
            trips={"LDG.128*12": 1, "LDG.128": 0},
            never=("CALL", "MUFU.EX2 !MUFU.RCP", "MUFU.RCP !MUFU.RCP*4"),
            at_most=25,
            at_least=8,
        )
        for storage, store in (("float", "STG.128"), ("__nv_bfloat16", "STG.64"))
    ),
    # The slope of tanh, which takes no exponential.
    Figure(
        "embedding_linear",
        "scatter_into_tables<float>",
        "backward, T = 3",
        unit="a row",
        units=8,
        loop="LDG*30",
        trips={"LDS*24": 1, "LDG": 0},
        never=("CALL", "MUFU"),
        at_least=8,
    ),
    Figure(
        "embedding_linear",
        "sum_segments<float>",
        "backward",
        unit="a row",
        units=8,
        loop="LDG*8 STG",
        never=("CALL",),
        at_least=8,
    ),
    # Plain SGD on a batch of 32 examples, T = 3, D = 10, H = 200, 27 classes, of whose contexts 25 to 28 are distinct:
    # 7 groups of rows. Trips of a phase are for the part of the 16 warps that have something to do in it.
    Figure(
        "train_steps",
        "train_mlp<float>",
        "the lecture's model",
        unit="a step",
        units=1 / 16,
        loop="LDG*3 STG BAR",
        trips={
            "BAR*10": 1,  # a tile
            "LDGSTS": 2 / 16,
            "FSEL*4 LDS*12 !FADD": 7 / 16,  # the inputs
            "MUFU.EX2*16": 11 / 16,  # h
            "FFMA*448": (12 / 16, 13 / 16),  # d weight2, and d weight1
            "FFMA*80 STS.128*4": 11 / 16,  # d h
            "FFMA*128": (4, 3),  # of the products for h, and for d h
            "F2I !FFMA !SHFL": 7 / 16,  # parts of the logits, and of d inputs
            "FFMA*64 LDS.128*8": (12.75, 12.5),  # of these products
            "ST.128*4 !LD": 1,  # a part, in each block
            "LDS*8 STS*4": 7 / 16,  # d inputs
            "FMNMX*3 SHFL": 7 / 16,  # softmax
            "FMNMX*4": 1,
            "MUFU.EX2*4": 1,
            "LDG FSEL": 1,  # an entry
            "FADD*4 LDS.128 !STS !SHFL !FSEL": 3,  # parts that are added up
            "LDS.128 STS.128 !LDS*3 !SHFL !LD": 7 / 16,  # the logits
            "SHFL*4 ST.128": 6 / 16,  # d embedding
            "FFMA*16 FSEL*4 LDS.128*5": 10.5,
            "LD.128 !LDS.128": 0,  # the norm
            "ST*4 !ST.128": 0,
            "FADD LDS !FFMA": 0,
            "FFMA*24 LD.128*4": 0,  # momentum and weight decay
            "LD.128*3 LDS.128 MUFU": 0,  # AdamW
            "FFMA*8 LD.128*2": 3.1,
        },
        # 8 groups; the norm; what a cluster waits with; the soft cap, and its slope.
        never=(
            "CALL",
            "FFMA*512",
            "FFMA*5 FADD FCHK !FFMA*6",
            "MEMBAR",
            "FMUL*3 MUFU*2 FFMA*6 !FMUL*4",
            "FFMA*6 FCHK !FFMA*13",
        ),
        at_most=60_000,
    ),
]
