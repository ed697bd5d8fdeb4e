"""The language of the project: no string, docstring, comment or page uses idioms that engineering documentation avoids.

Oracle: a list of patterns, each with the wording to use instead and with sentences that it must and must not match.
"""

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_LAG = "".join(f"(?<!{words} )" for words in ("fall", "falls", "fell", "falling", "when", "lag", "lags", "left", "leaves"))
_COMPARATIVE = "longer|more|less|later|larger|smaller|worse|better|wider|faster|slower|earlier|greater|fewer"

BANNED = {
    r"\bin front of\b": "before",
    rf"{_LAG}\bbehind\b": "after",
    rf"(?<!there )(?<!There )\b(?:is|are|was|were|be) no\b(?! (?:{_COMPARATIVE})\b)": "is not a",
    r"\banew\b": "again",
    r"\bmend(?:s|ed|ing)?\b": "fix, repair, resolve",
    r"\b(?:bears?|bore) out\b": "confirms, agrees with",
    r"\bwhoever\b": "the caller, the reader, a user",
    r"\bdrawn (?:weights|network)\b|\bdraws? (?:the )?weights\b": "random weights",
    r"\b(?:says?|said|told|tells?) of\b": "reports, describes",
    r"\bto be had\b": "available",
    r"\bh(?:o|e)ld(?:s|ing)? (?:\S+ ){0,6}?against\b": "compare with",
    r"\bat arm's length\b": "in a subprocess",
    r"\bspeed of life\b": "real time",
    r"\bgives? none any more\b": "stopped delivering",
    r"\bsomebody's (?:place|own)\b": "foreign",
}


def wording_errors(text):
    """What is wrong in a text: the words and what to write instead."""
    flat = " ".join(text.split())
    return [f"{match[0]!r}: write {instead!r}" for pattern, instead in BANNED.items() for match in re.finditer(pattern, flat)]


def texts_of_python(source):
    """(line, text) of every string and comment of a Python source; adjacent comment lines are joined."""
    texts, comment = [], None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comment and comment[0] + comment[2] == token.start[0]:
                comment = (comment[0], comment[1] + " " + token.string.lstrip("# "), comment[2] + 1)
                texts[-1] = comment[:2]
            else:
                comment = (token.start[0], token.string.lstrip("# "), 1)
                texts.append(comment[:2])
        elif token.type == tokenize.STRING or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            texts.append((token.start[0], token.string))
    return texts


def tracked(*patterns):
    listing = subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, check=True, cwd=ROOT)
    return [ROOT / name for name in listing.stdout.split()]


def offenders(paths):
    found = []
    for path in paths:
        if path.name == Path(__file__).name or not path.exists():
            continue
        source = path.read_text(encoding="utf-8")
        texts = texts_of_python(source) if path.suffix == ".py" else [(0, source)]
        for line, text in texts:
            found += [f"{path.relative_to(ROOT)}:{line}: {error}" for error in wording_errors(text)]
    return found


def test_product_and_scripts_use_plain_english():
    assert offenders(tracked("calib/*.py", "engines/*.py", "edge/*.py", "scripts/*.py")) == []


def test_pages_and_documents_use_plain_english():
    assert offenders(tracked("*.md", "*.html", "*.js", "*.sh", "*.yml", "*.toml")) == []


def test_tests_use_plain_english():
    assert offenders(tracked("tests/*.py")) == []


@pytest.mark.parametrize(
    "text",
    [
        "Q/DQ stands in front of the norm",
        "Q/DQ behind\n    the norm",
        "the budget is no number",
        "judged anew",
        "the command that mends it",
        "what the logits do not bear out",
        "whoever reads it",
        "drawn weights",
        "what it says of the network",
        "the images are not to be had",
        "holds the answers against the reference",
        "onnxsim at arm's length",
    ],
)
def test_an_idiom_is_found(text):
    assert wording_errors(text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no GPU",
        "it is no longer needed",
        "an audit that falls behind skips",
        "recommended",
        "a new graph",
        "an amendment",
        "protection against a kill",
    ],
)
def test_plain_words_are_left_alone(text):
    assert wording_errors(text) == []
