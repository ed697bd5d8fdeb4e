"""Write the gate's result as Markdown, for a pull request."""

import re
from html import escape

from calib.printable import one_line, printable
from edge.gate.compare_builds import GateReport

_MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "skipped": "➖", "refused": "⛔"}  # noqa: RUF001  # signs, not text


def markdown_summary(report: GateReport) -> str:
    """The reasons of what did not pass, then a table with a row per quantity."""
    lines = [f"### {_MARKS[report.verdict]} Accuracy gate: {report.verdict}", ""]
    lines += [f"{_code(report.folder)} against {_code(report.baseline)}", ""]
    if report.verdict == "refused":
        lines += ["```", printable(report.reason).replace("```", "'''"), "```", ""]
    refused = (row for row in report.rows if row.result in ("fail", "inconclusive"))
    lines += [f"- **{_cell(row.quantity)}**: {_cell(row.detail)}" for row in refused]
    if report.rows:
        if report.verdict != "pass":
            lines.append("")
        columns = ("", "quantity", "baseline", "now", "allowed", "result", "reason of the tolerance")
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in report.rows:
            texts = (row.quantity, row.baseline, row.measured, row.allowed, row.detail, row.reason)
            lines.append(f"| {_MARKS[row.result]} | " + " | ".join(_cell(text) for text in texts) + " |")
        lines.append("")
    lines += [f"- {_cell(note)}" for note in report.notes]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Escape text for a table cell: no tag, link, picture or emphasis of Markdown."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(one_line(text), quote=False))


def _code(text: str) -> str:
    """Text as code."""
    return "`" + one_line(text).replace("`", "'") + "`"
