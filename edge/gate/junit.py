"""What the gate says as JUnit XML, for a test report.

It is written with the standard library: a suite, a case per quantity and one element per result are all of it, and the gate
also runs on a device, which lacks whatever is not needed there.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from edge.gate.compare_builds import GateReport
from edge.tasks.gate_row import Row

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: GateReport) -> bytes:
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


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname="ufovit.gate", name=name)


def _explained(row: Row) -> str:
    parts = {"found": row.detail, "baseline": row.baseline, "now": row.measured, "allowed": row.allowed, "why": row.reason}
    return "\n".join(f"{name}: {text}" for name, text in parts.items() if text)


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
