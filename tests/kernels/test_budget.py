"""No kernel issues more instructions for its bytes than its ceiling allows, by tests/kernels/compiled.json, which test_compile.py
holds to what is compiled; the model says of each what an account of its phases by hand said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.triton import glu, layer_norm
from tests.kernels import aot, budget, budget_report, cases_pointwise, sass
from tests.kernels.ceilings import CEILINGS

TABLE = json.loads(aot.TABLE.read_text())
CASES = {case.name: case for cases in aot.groups().values() for case in cases}
H200 = budget.GPUS[90]
PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"


def _as_it_was(
    programs: int, instructions: list[int], memory_waits: list[int], barriers: list[int] | None = None
) -> dict:
    """A kernel without products, 8 warps to a program; of a list one number is of each loop, the first of what is in none."""
    none = [0] * len(instructions)
    counts = {
        "instructions": instructions,
        "memory_waits": memory_waits,
        "barriers": barriers or none,
        "product_waits": none,
    }
    return {"warps": 8, "programs": programs, **counts}


BLOCKS = 30528 // 4096 + 1  # of the loss's row, as it was


# By hand, of an H200: cycles to issue at the limit, cycles to move the bytes, percent of the reachable bandwidth. Made of the
# kernels before any was changed for it; of those that have been, the machine code's counts from then.
BEFORE = {
    "glu_forward_3072_gelu_dropout": _as_it_was(4, [854], [3]),
    "glu_backward_3072_gelu_dropout": _as_it_was(3, [1061], [3]),
    "glu_forward_4096_gelu": _as_it_was(4, [683], [2]),
    "glu_backward_4096_gelu": _as_it_was(3, [916], [2]),
    "layer_norm_forward_768_dropout": _as_it_was(4, [560], [2], [13]),
    "layer_norm_backward_768_dropout": _as_it_was(2, [279, 791], [1, 6], [11, 6]),
    "layer_norm_forward_1024": _as_it_was(5, [411], [2], [13]),
    "layer_norm_backward_1024": _as_it_was(2, [281, 462], [1, 2], [11, 6]),
    "attention_short backward, 128 x 64, bf16": {
        **_as_it_was(1, [623, 761], [2, 1], [4, 9]),
        "product_waits": [0, 5],
    },
    "cross_entropy_30528_gradient_smoothing": _as_it_was(5, [220, 47, 388, 293], [2, 0, 2, 1], [0, 0, 12, 0]),
}
# LayerNorm of 768 columns without dropout ran the code of 1,024.
BEFORE |= {f"layer_norm_{kernel}_768": BEFORE[f"layer_norm_{kernel}_1024"] for kernel in ("forward", "backward")}
BY_HAND = {
    "glu_forward_3072_gelu_dropout": (216, 179, 62),
    "glu_backward_3072_gelu_dropout": (268, 299, 80),
    "glu_forward_4096_gelu": (174, 179, 72),
    "glu_backward_4096_gelu": (232, 299, 88),
    "layer_norm_forward_768_dropout": (1152, 1078, 70),
    "layer_norm_backward_768_dropout": (1582, 1796, 65),
    "layer_norm_forward_768": (848, 1078, 80),
    "layer_norm_backward_768": (924, 1434, 72),
    "layer_norm_forward_1024": (848, 1437, 86),
    "layer_norm_backward_1024": (924, 1912, 78),
    "attention_short forward, 128 x 64, bf16": (2264, 3460, 72),
    "attention_short backward, 128 x 64, bf16": (4300, 6040, 56),
    "cross_entropy_30528_gradient_smoothing": (10900, 8900, 58),
    "padding_gather_768": (None, None, 85),
}
# A loop that loads, waits and stores; before it another that only waits for something on chip; out-of-line code that nothing
# reaches but a warp whose lanes have parted.
LISTING = """
        /*0000*/                   LDG.E.64 R2, desc[UR4][R2.64] ;        /* 0x0000000000000000 */
        /*0010*/                   IADD3 R4, R3, 0x1, RZ ;                /* 0x0000000000000000 */
        /*0020*/                   SYNCS.PHASECHK.TRYWAIT P0, [UR5], R9 ; /* 0x0000000000000000 */
        /*0030*/              @!P0 BRA 0x20 ;                             /* 0x0000000000000000 */
        /*0040*/                   LDG.E.128 R8, desc[UR4][R2.64] ;       /* 0x0000000000000000 */
        /*0050*/                   LDG.E.U16 R12, desc[UR4][R2.64] ;      /* 0x0000000000000000 */
        /*0060*/                   BRA.DIV UR6, 0xe0 ;                    /* 0x0000000000000000 */
        /*0070*/                   SHFL.BFLY PT, R13, R10, 0x10, 0x1f ;   /* 0x0000000000000000 */
        /*0080*/                   FADD R14, R12, R13 ;                   /* 0x0000000000000000 */
        /*0090*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;          /* 0x0000000000000000 */
        /*00a0*/               @P1 EXIT ;                                 /* 0x0000000000000000 */
        /*00b0*/                   STG.E desc[UR4][R2.64], R14 ;          /* 0x0000000000000000 */
        /*00c0*/                   BRA.U UP0, 0x40 ;                      /* 0x0000000000000000 */
        /*00d0*/                   EXIT ;                                 /* 0x0000000000000000 */
        /*00e0*/                   WARPSYNC.COLLECTIVE R7, 0xf0 ;         /* 0x0000000000000000 */
        /*00f0*/                   BRA 0x80 ;                             /* 0x0000000000000000 */
        /*0100*/                   BRA 0x100 ;                            /* 0x0000000000000000 */
"""


def _norm_as_it_was(name: str) -> budget.Work:
    """Four rows to a program; of the backward 264 programs, each over a range of rows."""
    _, _, kernel, columns, *fused = name.split("_")
    forward = kernel == "forward"
    passes = 1 if forward else -(-cases_pointwise.TOKENS // 264 // 4)
    tensors = 3 if forward else 4 + len(fused)
    return budget.Work(passes * 4 * (int(columns) * 2 * tensors + 8), () if forward else (passes,))


def account_of(name: str) -> tuple[dict, budget.Work]:
    """The figures and the work that the account was of."""
    if name.startswith("cross_entropy"):
        return BEFORE[name], budget.Work(30528 * 2 * 2.5, (0, BLOCKS, BLOCKS))
    if name.startswith("layer_norm"):
        return BEFORE[name], _norm_as_it_was(name)
    if name.startswith("glu"):
        return BEFORE[name], budget.Work(4096 * 2 * (3 if "forward" in name else 5))
    case = CASES[name]
    return BEFORE.get(name) or TABLE[name]["sm_90"], case.work(case.constants(90))


@pytest.mark.parametrize("name", BY_HAND)
def test_the_model_agrees_with_an_account_by_hand(name):
    issue, memory, percent = BY_HAND[name]
    figures, work = account_of(name)
    assert 100 * budget.share(figures, work, H200) == pytest.approx(percent, abs=5)
    if issue:  # by hand, what nothing reaches was counted too, and of the loss nothing but the loops
        assert budget.issue_to_memory(figures, work, H200) == pytest.approx(issue / memory, rel=0.05)


def test_a_multiprocessor_s_share_of_the_bandwidth():
    assert round(H200.bytes_per_cycle, 1) == 17.1


def test_no_kernel_issues_more_than_it_may():
    ratios = {name: row["sm_90"].get("issue_to_memory", 0.0) for name, row in TABLE.items() if "sm_90" in row}
    above = {name: ratio for name, ratio in ratios.items() if ratio > CEILINGS.get(name, (budget.CEILING,))[0]}
    assert above == {}, "find a smaller form, or say in tests/kernels/ceilings.py why there is none"
    slack = {
        name: (ceiling, ratios.get(name))
        for name, (ceiling, _) in CEILINGS.items()
        if not budget.CEILING < ratios.get(name, 0.0) > ceiling - 0.011
    }
    assert slack == {}, "these kernels need less by now: lower their ceilings, or remove them"


def test_no_more_programs_than_run_at_once():
    """One more would begin when the others have ended, and leave most of the GPU idle meanwhile."""
    checked = 0
    for name, rows in TABLE.items():
        for target, figures in rows.items():
            if name.startswith("glu"):
                asked = glu.programs_per_processor("backward" in name)
            elif name.startswith("layer_norm") and "reduction" not in name:
                columns = int(name.split("_")[3])
                kind = ("backward" in name, "twice" in name)
                asked = layer_norm.programs_per_processor(int(target[3:]), columns, *kind)
            else:
                continue
            assert asked <= figures["programs"], (name, target)
            checked += 1
    assert checked >= 60


def test_every_kernel_has_a_budget_or_says_why_not():
    assert {name for name, case in CASES.items() if bool(case.work) == bool(case.unbudgeted)} == set()


def test_the_table_follows_from_its_own_figures_and_the_model_s_constants():
    for name, case in CASES.items():
        for target, figures in TABLE[name].items():
            capability = int(target.removeprefix("sm_"))
            gpu = budget.GPUS[capability]
            fit = budget.programs(gpu, figures["warps"], figures["registers"], figures["shared"])
            assert fit == figures["programs"], (name, target)
            if case.work:
                made = budget.predicted(figures, case.work(case.constants(capability)), capability, case.dot)
                assert made == {key: figures[key] for key in made}, (name, target)
                assert ("predicted_share" in made) == ("predicted_share" in figures), (name, target)


def test_the_page_shows_the_table():
    assert budget_report.page() in PAGE.read_text("utf-8"), "paste what `python -m tests.kernels.aot --report` prints"


def test_a_listing_is_counted_by_its_loops():
    assert sass.figures(LISTING) == {
        "instructions": [5, 9],
        "barriers": [0, 1],
        "shuffles": [0, 1],
        "memory_waits": [1, 1],
        "product_waits": [0, 0],
        "loads": {"128": 1, "16": 1},
        "stores": {"32": 1},
        "per_byte": round(9 / 22, 2),
    }


def test_work_names_as_many_loops_as_there_are():
    with pytest.raises(ValueError, match="zip"):
        budget.total([5, 9], budget.Work(moved=22.0))


def test_without_a_disassembler_nothing_passes(monkeypatch):
    knobs = pytest.importorskip("triton.knobs")

    class Without:
        @property
        def cuobjdump(self):
            raise RuntimeError("Cannot find cuobjdump")

    monkeypatch.setattr(knobs, "nvidia", Without())
    with pytest.raises(RuntimeError, match="Cannot find cuobjdump.*no kernel's instructions are counted"):
        sass.disassembled(b"")
    with pytest.raises(ValueError, match="no instruction"):
        sass.figures("Resource usage: REG:40")
