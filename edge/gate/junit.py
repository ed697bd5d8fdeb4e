"""Write the gate's result as JUnit XML, for a test report: with the standard library alone, as the gate runs on devices too."""

from xml.etree import ElementTree as ET

from calib.printable import one_line, printable
from edge.gate.compare_builds import GateReport
from edge.tasks.gate_row import Row


def junit_xml(report: GateReport) -> bytes:
    """JUnit XML: a failed row is a failure, an inconclusive row or a refusal an error."""
    suite = ET.Element("testsuite", name="ufovit gate")
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for row in report.rows:
        case = ET.SubElement(suite, "testcase", classname="ufovit.gate", name=one_line(row.quantity))
        kind = {"fail": "failure", "inconclusive": "error", "skipped": "skipped"}.get(row.result)
        if kind:
            counts[kind] += 1
            ET.SubElement(case, kind, message=one_line(row.detail)).text = printable(_explain(row))
        else:
            ET.SubElement(case, "system-out").text = printable(_explain(row))
    if report.verdict == "refused":
        counts["error"] += 1
        case = ET.SubElement(suite, "testcase", classname="ufovit.gate", name="baseline")
        ET.SubElement(case, "error", message=printable(report.reason.splitlines()[0])).text = printable(report.reason)
    totals = {"tests": len(suite), "failures": counts["failure"], "errors": counts["error"], "skipped": counts["skipped"]}
    for name, value in totals.items():
        suite.set(name, str(value))
    root = ET.Element("testsuites", {name: str(value) for name, value in totals.items()})
    root.append(suite)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _explain(row: Row) -> str:
    parts = {"found": row.detail, "baseline": row.baseline, "now": row.measured, "allowed": row.allowed, "why": row.reason}
    return "\n".join(f"{name}: {text}" for name, text in parts.items() if text)
