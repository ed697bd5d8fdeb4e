"""Describe the steps of an inference: those of a receipt, and the files that trtexec writes about an engine."""

from pathlib import Path

from calib.errors import UsageError
from calib.files import read_regular
from calib.json_reader import LARGEST_JSON_BYTES
from edge.inspect.describe_dataclass import limited
from edge.inspect.description import Description, Listing, size_text
from engines.engine_inspector import inspected_layers, inspected_steps, read_profile
from engines.plan_kernels import PlanKernels, StepTotal, summarize_steps
from engines.speed_estimate import EngineTotals, Fp16Plan, MeasuredSpeed, SpeedEstimate

_COLUMNS = ("steps", "weights", "activations of one image", "steps of unknown size")


def describe_kernels(plan: PlanKernels) -> list[Listing]:
    """Tables of the steps by kind, by block, and of one block."""
    listings = [Listing(f"{plan.total.steps} steps by kind", ("kind", *_COLUMNS), _rows(plan.kinds))]
    if plan.blocks:
        listings.append(limited("Steps by block", ("block", *_COLUMNS), list(_rows(plan.blocks))))
        rows = tuple(
            (step.kind, step.name, size_text(step.weight_bytes + (step.activation_bytes or 0)), " ".join(step.nodes[:2]))
            for step in plan.block_steps
        )
        listings.append(Listing(f"The steps of {plan.block}", ("kind", "kernel", "moves", "nodes"), rows))
    return listings


def describe_fp16_plan(fp16: Fp16Plan) -> Description:
    """fp16_plan.json: what the FP16 engine of the same network runs."""
    facts = {"float graph": fp16.onnx_sha256}
    if fp16.plan is None:
        return Description("FP16 engine", facts, (), (f"none: {fp16.reason}",))
    facts["runs"] = f"{fp16.plan.total.steps} steps, which move {size_text(fp16.plan.total.moved_bytes)} for one image"
    return Description("FP16 engine", facts, tuple(describe_kernels(fp16.plan)))


def describe_speed(estimate: SpeedEstimate) -> Description:
    """speed.json: the expected speed of the INT8 engine beside the FP16 engine, by target and batch."""
    facts = {"INT8 engine": estimate.engine_sha256}
    if estimate.int8 is None or estimate.fp16 is None:
        return Description("Estimate of speed", facts, (), (f"no estimate: {estimate.reason}",))
    facts |= {f"{name} runs": _totals(totals) for name, totals in (("INT8", estimate.int8), ("FP16", estimate.fp16))}
    rows = tuple((speed.target, speed.machine, up.sentence()) for speed in estimate.targets for up in speed.batches)
    listing = Listing("INT8 beside FP16, expected: nothing was timed", ("target", "rates of", "INT8 is"), rows)
    return Description("Estimate of speed", facts, (listing,))


def describe_measured_speed(measured: MeasuredSpeed) -> Description:
    """measured_speed.json: the speed of the INT8 engine beside another one, as timed."""
    facts = {"INT8 engine": measured.engine_sha256, f"{measured.precision.upper()} engine": measured.other_sha256}
    facts |= {"measured on": measured.machine, "at": measured.created}
    listing = Listing("INT8, measured", ("speed",), tuple((sentence,) for sentence in measured.sentences()))
    return Description("Measured speed", facts, (listing,))


def _totals(totals: EngineTotals) -> str:
    steps = totals.steps
    return (
        f"{steps.steps} steps, {size_text(steps.moved_bytes)} for one image, "
        f"{totals.int8_macs / 1e6:,.1f} million multiply-accumulates in INT8 and {totals.float_macs / 1e6:,.1f} in float"
    )


def describe_trtexec(path: Path) -> Description:
    """The file of trtexec's --exportLayerInfo or --exportProfile. Raises UsageError for any other JSON file."""
    text = read_regular(path, largest=LARGEST_JSON_BYTES).decode(errors="replace")
    if text.lstrip().startswith("["):
        times = read_profile(text)
        total = sum(time for _, time in times)
        slowest = sorted(times, key=lambda entry: -entry[1])
        rows = [(name, f"{time:.4f}", f"{time / total:.1%}" if total else "") for name, time in slowest]
        facts = {"layers": str(len(times)), "sum of their mean times": f"{total:.3f} ms"}
        return Description("Profile of trtexec", facts, (limited("The slowest layers", ("layer", "ms", "share"), rows),))
    if '"Layers"' not in text:
        raise UsageError(
            "unknown kind of artifact", where=path, found=path.name, allowed="layer information or a profile of trtexec"
        )
    plan = summarize_steps(inspected_steps(inspected_layers(text)))
    if plan is None:
        raise UsageError(
            "no layer of this engine runs a kernel", where=path, found=path.name, allowed="layer information of trtexec"
        )
    facts = {"runs": f"{plan.total.steps} steps in one inference", "moves": size_text(plan.total.moved_bytes)}
    return Description("Layer information of an engine", facts, tuple(describe_kernels(plan)))


def _rows(totals: tuple[StepTotal, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (total.name, str(total.steps), size_text(total.weight_bytes), size_text(total.activation_bytes), str(total.uncounted))
        for total in totals
    )
