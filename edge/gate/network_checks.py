"""Compare the certificate of the whole network with the baseline's: verdict, headroom by kind of site, islands, emulation."""

import math
from collections.abc import Iterator, Mapping

from edge.gate.baseline import NetworkMargins
from edge.stability.verdict import STABILITIES
from edge.tasks.gate_row import Measurement, Row, Tolerance, is_number, listed, missing_row, row, skipped_row

_ABSOLUTE = "A certificate that got worse is a defect, whatever the images."


def network_rows(
    before: NetworkMargins | None, now: NetworkMargins | None, tolerances: Mapping[str, Tolerance]
) -> Iterator[Row]:
    """The verdict, the places not judged, the least headroom of each kind of site, the islands, the emulated SQNR.

    A baseline of an earlier release has no such certificate: then there is one skipped row.
    """
    if before is None:
        yield skipped_row("network_verdict", "the baseline has no certificate of the whole network; --update records one")
        return
    if now is None:
        yield missing_row("network_verdict", "missing: no certificate of the whole network")
        return
    worse = STABILITIES.index(now.verdict) > STABILITIES.index(before.verdict)
    detail = f"{before.verdict} became {now.verdict}" if worse else f"{now.verdict}, {len(now.headroom_bits)} kinds of site"
    yield _absolute("network_verdict", not worse, (before.verdict, now.verdict), detail)
    counts = f"{before.unjudged}", f"{now.unjudged}"
    yield _absolute("network_unjudged", now.unjudged <= before.unjudged, counts, f"{now.unjudged} places not judged")
    for kind in sorted(before.headroom_bits):
        yield _headroom(kind, before.headroom_bits[kind], now.headroom_bits.get(kind), tolerances["network_headroom"])
    more, allowed = now.islands - before.islands, tolerances["network_islands"]
    texts = f"{before.islands}", f"{now.islands}", f"{allowed.tolerance:g} more"
    islands = Measurement(more <= allowed.tolerance, texts, more, f"{now.islands} sites compute in FP32, {more:+d}")
    yield row("network_islands", allowed, islands)
    yield _emulated(before.emulated_sqnr_db, now.emulated_sqnr_db, tolerances["emulated_sqnr"])


def _absolute(quantity: str, passed: bool, values: tuple[str, str], detail: str) -> Row:
    return Row(quantity, "pass" if passed else "fail", *values, values[0], None, None, _ABSOLUTE, detail)


def _headroom(kind: str, before: float, now: float | None, tolerance: Tolerance) -> Row:
    quantity = f"headroom_{kind}"
    if now is None or not math.isfinite(now):
        return missing_row(quantity, f"missing: headroom of {listed((kind,))}")
    lost = before - now
    texts = f"{before:.1f} bits", f"{now:.1f} bits", f"{tolerance.tolerance:g} bits lost"
    return row(quantity, tolerance, Measurement(lost <= tolerance.tolerance, texts, lost, f"{lost:+.2f} bits lost"))


def _emulated(before: float | None, now: float | None, tolerance: Tolerance) -> Row:
    if before is None:
        return skipped_row("emulated_sqnr", "the baseline has no emulated network")
    if now is None or not is_number(now):
        return missing_row("emulated_sqnr", "the FP16 network was not emulated, or no output is finite")
    lost = before - now
    texts = f"{before:.1f} dB", f"{now:.1f} dB", f"{tolerance.tolerance:g} dB lost"
    return row("emulated_sqnr", tolerance, Measurement(lost <= tolerance.tolerance, texts, lost, f"{lost:+.2f} dB lost"))
