"""What the gate says, for those who read it elsewhere: JUnit XML for a test report, Markdown for a pull request.

JUnit is written with the standard library: a suite, a case per quantity and one element per result are all of it, and the gate
also runs on a device, which lacks whatever is not needed there.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from edge.gate.checks import Row
from edge.gate.compare_builds import GateReport

_MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "skipped": "➖", "refused": "⛔"}  # noqa: RUF001  # signs, not text
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: GateReport) -> bytes:
    """JUnit XML: a failure is a failure, what could not be decided or compared at all an error."""
    suite = ET.Element("testsuite", name="ufovit gate")
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for row in report.rows:
        element = _case(suite, row.quantity)
        kind = {"fail": "failure", "inconclusive": "error", "skipped": "skipped"}.get(row.result)
        if kind:
            counts[kind] += 1
            ET.SubElement(element, kind, message=_xml(row.detail)).text = _xml(_explained(row))
        else:
            ET.SubElement(element, "system-out").text = _xml(_explained(row))
    if report.verdict == "refused":
        counts["error"] += 1
        first = report.reason.splitlines()[0]
        ET.SubElement(_case(suite, "baseline"), "error", message=_xml(first)).text = _xml(report.reason)
    totals = {"tests": len(suite), "failures": counts["failure"], "errors": counts["error"], "skipped": counts["skipped"]}
    for name, value in totals.items():
        suite.set(name, str(value))
    root = ET.Element("testsuites", {name: str(value) for name, value in totals.items()})
    root.append(suite)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def markdown(report: GateReport) -> str:
    """A table with a row per quantity, the reasons of what did not pass in front of it."""
    lines = [f"### {_MARKS[report.verdict]} Accuracy gate: {report.verdict}", ""]
    lines += [f"`{report.folder}` against `{report.baseline}`", ""]
    if report.verdict == "refused":
        lines += ["```", report.reason.replace("```", "'''"), "```", ""]
    lines += [f"- **{row.quantity}**: {_cell(row.detail)}" for row in report.rows if row.result in ("fail", "inconclusive")]
    if report.rows:
        if report.verdict != "pass":
            lines.append("")
        lines += ["| | quantity | baseline | now | allowed | found | why so much is allowed |", "|---|---|---|---|---|---|---|"]
        for row in report.rows:
            texts = (row.quantity, row.baseline, row.measured, row.allowed, row.detail, row.reason)
            lines.append(f"| {_MARKS[row.result]} | " + " | ".join(_cell(text) for text in texts) + " |")
        lines.append("")
    lines += [f"- {_cell(note)}" for note in report.notes]
    return "\n".join(lines) + "\n"


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname="ufovit.gate", name=name)


def _explained(row: Row) -> str:
    parts = {"found": row.detail, "baseline": row.baseline, "now": row.measured, "allowed": row.allowed, "why": row.reason}
    return "\n".join(f"{name}: {text}" for name, text in parts.items() if text)


def _cell(text: str) -> str:
    """Text that stays in its cell and shows as it is."""
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(sign, shown)
    return " ".join(text.split())


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
