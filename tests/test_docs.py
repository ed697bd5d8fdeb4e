"""What the READMEs say is so: commands, options, scripts, links, files, exit codes and names.

Every checker is a function from text to the list of what is wrong in it; each has a negative control.
"""

import re
from pathlib import Path

import pytest
from documented_commands import inline_commands, shell_commands, wrong_in_command

import edge.cli.main
from calib import errors
from edge.cli.main import COMMANDS
from edge.model.sizes import SIZES
from engines.build_spec import PRECISIONS
from engines.select_target import AUTO
from engines.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("edge/*/README.md"), *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def name(path):
    return str(path.relative_to(ROOT))


def broken_links(text, folder):
    """Relative link targets that do not exist, and anchors that no heading has."""
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    return [
        link
        for link in local
        if (link.startswith("#") and link[1:] not in headings)
        or (not link.startswith("#") and not (folder / link.partition("#")[0]).exists())
    ]


def missing_files(text, folder):
    """Names in the first column of a table, or in a tree of folders, of .py files and folders that do not exist."""
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("|")]
    named = [n for cell in cells for n in re.findall(r"`([\w/.]+(?:\.py|/))`", cell)]
    return [n for n in named if not (folder / n).exists() and not (ROOT / n).exists()]


def exit_codes(text):
    """{code: sentence} of "**0** passed · **1** a verdict failed ..." or of lines "0    done and passed"."""
    inline = re.findall(r"(?:\*\*(\d+)\*\*|(?<=· )(\d+)) ([^·.]+)", text)
    return {int(bold or plain): words.strip() for bold, plain, words in inline} or {
        int(code): words for code, words in re.findall(r"^(\d+) +(.+)$", text, re.MULTILINE)
    }


def models_precisions_targets(text):
    """The three lists of names in the row of `ufovit build`."""
    (row,) = (line for line in text.splitlines() if line.startswith("| `ufovit build"))
    lists = re.findall(r"(models|precisions|targets) ((?:`[\w-]+` ?)+)", row)
    return {kind: tuple(re.findall(r"`([\w-]+)`", names)) for kind, names in lists}


EXIT_PARAGRAPH = next(p for p in README.split("\n\n") if p.startswith("Exit codes"))


@pytest.mark.parametrize("path", READMES, ids=name)
def test_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    for words in shell_commands(text) + inline_commands(text):
        assert wrong_in_command(words) == [], " ".join(words)


def test_the_two_commands_of_the_readme_are_found():
    commands = shell_commands(README)
    assert ["scripts/build_engine.sh", "ufovit_t", "int8"] in commands
    assert ["scripts/test.sh"] in commands
    assert any(words[0] == "ufovit" for words in commands)


@pytest.mark.parametrize("path", READMES, ids=name)
def test_links_and_files_exist(path):
    text = path.read_text(encoding="utf-8")
    assert broken_links(text, path.parent) == []
    assert missing_files(text, path.parent) == []


@pytest.mark.parametrize("package", ["calib", "engines", "edge"])
def test_every_package_has_a_readme_that_names_all_its_files(package):
    """A room whose map leaves out a door is useless: each .py file is named, itself or through its folder."""
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    unnamed = [
        p.name
        for p in sorted((ROOT / package).iterdir())
        if p.suffix == ".py" and p.name != "__init__.py" and not re.search(rf"(?<![\w]){re.escape(p.name)}", text)
    ]
    folders = [p.name for p in sorted((ROOT / package).iterdir()) if (p / "__init__.py").exists() and f"{p.name}/" not in text]
    assert unnamed + folders == []


@pytest.mark.parametrize("path", READMES, ids=name)
def test_nothing_is_left_to_be_filled_in(path):
    assert re.findall(r"@@\w*@@|TODO|FIXME|XXX", path.read_text(encoding="utf-8")) == []


def test_exit_codes_agree():
    documented, command_line = exit_codes(EXIT_PARAGRAPH), exit_codes(edge.cli.main.__doc__)
    assert documented.keys() == command_line.keys() == {0, 1, 2, 3, 4, edge.cli.main.INTERNAL_ERROR, edge.cli.main.INTERRUPTED}
    branches = [errors.VerdictError, errors.InputError, errors.EvidenceError, errors.MissingError]
    tree = {int(code): kind for kind, code in re.findall(r"\+- (\w+) +(\d)", errors.__doc__)}
    assert tree == {kind.exit_code: kind.__name__ for kind in branches}
    for code, word in ((1, "verdict failed"), (2, "bad usage"), (4, "this machine lacks"), (130, "interrupted")):
        assert word in documented[code]
        assert word in command_line[code]


def test_models_precisions_and_targets_agree():
    known = {"models": tuple(SIZES), "precisions": tuple(PRECISIONS), "targets": (AUTO, *TARGETS)}
    assert models_precisions_targets(README) == known


def test_every_command_stands_in_the_readme():
    documented = {words[1] for words in inline_commands(README) if words[0] == "ufovit" and len(words) > 1}
    assert set(COMMANDS) <= documented


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("ufovit bake ufovit_t", "no command bake"),
        ("ufovit build ufovit_t int8 --max-drops 3", "no option --max-drops"),
        ("ufovit build ufovit_x int8", "no model ufovit_x"),
        ("scripts/build_engine.sh ufovit_t int9 --target cpu", "no precision int9"),
        ("scripts/build_engine.sh ufovit_t int8 --fast", "no option --fast"),
        ("scripts/nothing.sh", "not an executable script"),
        ("scripts/constraints.txt", "not an executable script"),
        ("python scripts/nothing.py", "no file scripts/nothing.py"),
        ("python scripts/train_checkpoint.py --data x --epoch-count 3", "no option --epoch-count"),
        ("rm -r build", "rm is not ours"),
    ],
)
def test_a_wrong_command_is_found(line, wrong):
    (found,) = [w for words in shell_commands(f"```sh\n{line}\n```\n") for w in wrong_in_command(words)]
    assert wrong in found
    assert wrong_in_command(["ufovit", "build", "ufovit_t", "int8", "--target=cpu"]) == []


def test_shell_blocks_are_read_as_a_shell_would():
    text = "```sh\nufovit build A \\\n  B  # why\n# nothing\n```\n```python\nrm\n```\n"
    assert shell_commands(text) == [["ufovit", "build", "A", "B"]]
    assert inline_commands("`ufovit doctor` and `rm` and `scripts/x.sh y`") == [["ufovit", "doctor"], ["scripts/x.sh", "y"]]


def test_a_broken_link_and_a_missing_file_are_found():
    text = "# Some head\n[a](nowhere.md) [b](README.md) [c](https://x.org/y) [d](#some-head) [e](#other)\n| `gone.py` `edge/` |"
    assert broken_links(text, ROOT) == ["nowhere.md", "#other"]
    assert missing_files(text, ROOT) == ["gone.py"]


def test_a_changed_exit_code_and_name_are_found():
    assert exit_codes("Exit codes: **0** fine · **5** odd · 70 bad.") == {0: "fine", 5: "odd", 70: "bad"}
    assert exit_codes("x\n\n0    done\n9    odd\n") == {0: "done", 9: "odd"}
    row = "| `ufovit build` | models `a` `b`, precisions `c`, targets `d` |"
    assert models_precisions_targets(row) == {"models": ("a", "b"), "precisions": ("c",), "targets": ("d",)}
