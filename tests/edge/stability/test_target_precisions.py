"""The table of what a target computes in FP32 inside an operator; one entry of each kind is measured again."""

import importlib.util
import sys
from pathlib import Path

import pytest

from edge.stability.target_precisions import OperatorPrecision, narrowest, target_precisions

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/bench/target_precisions.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_target_precisions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_narrowest_counts():
    assert narrowest("fp32", "not told", "fp16") == "fp16"
    assert narrowest("fp32", "not told") == "not told"
    assert narrowest("fp32", "fp32") == "fp32"


def test_norms_widen_on_rtx_and_squares_of_a_plain_sum_do_not():
    rtx = target_precisions("rtx")
    widened = ("LayerNormalization", "RMSNormalization", "ReduceL2", "LpNormalization", "InstanceNormalization")
    assert {rtx.of(operator) for operator in widened} == {"fp32"}
    assert (rtx.of("ReduceSumSquare"), rtx.elements("ReduceSumSquare"), rtx.sums("ReduceSumSquare")) == ("fp16", "fp16", "fp32")
    assert {rtx.of(operator) for operator in ("ReduceSum", "ReduceMean", "GlobalAveragePool")} == {"fp32"}
    assert {rtx.of(operator) for operator in ("Conv", "AveragePool", "NoSuchOperator")} == {"not told"}
    assert all(entry.evidence for entry in rtx.operators.values())
    assert "1.7.1" in rtx.source


def test_tables_have_the_names_of_backends_too():
    assert target_precisions("trt_rtx") is target_precisions("rtx")
    assert target_precisions("torch_trt") is target_precisions("tensorrt")
    assert target_precisions("tensorrt").of("LayerNormalization") == "fp32"
    for backend in (None, "ort"):
        assert target_precisions(backend).of("LayerNormalization") == "not told"
        assert not target_precisions(backend).operators


def test_kernels_are_read(bench):
    case = bench.Case("ReduceSumSquare", "norm")
    source = "warp_reduction::warp_reduce<AddOp<__myln_float>,__myln_float,__myln_half,__myln_vtype<__myln_half,4,8>>(__v4);"
    assert bench.read_precision(case, source, frozenset()) == OperatorPrecision(
        "fp16", "fp32", "warp_reduction::warp_reduce<AddOp<__myln_float>,__myln_float,__myln_half"
    )
    assert bench.read_precision(case, source.replace("half", "float"), frozenset()).elements == "fp32"
    assert bench.read_precision(case, source.replace("float", "half"), frozenset()).sums == "fp16"
    assert bench.read_precision(case, "another format", frozenset()) == OperatorPrecision("not told", "not told", "")
    elementwise = bench.Case("Exp", "elementwise")
    text = "__myln_exp___myln_half___myln_half(__v1); __myln_add___myln_float___myln_float(__v1, __v2)"
    assert bench.read_precision(elementwise, text, frozenset({"exp"})).elements == "fp16"
    assert bench.read_precision(elementwise, text, frozenset({"add"})).elements == "fp32"


@pytest.mark.parametrize("operator", ["LayerNormalization", "ReduceSumSquare", "Softmax", "Exp", "Conv", "GroupNormalization"])
def test_the_installed_release_computes_what_the_table_says(bench, operator):
    release = pytest.importorskip("tensorrt_rtx").__version__
    table = target_precisions("rtx")
    if not table.version.startswith(release):
        pytest.skip(f"the table is of {table.version}, installed is {release}")
    case = next(case for case in bench.cases() if case.operator == operator)
    plan = bench.build_plan(bench.graph(case, in_network=False), "8.6")
    found = bench.read_precision(case, "\n".join(bench.sources_of_node(plan)), frozenset())
    assert (found.elements, found.sums) == (table.elements(operator), table.sums(operator))
