"""The commands that a document names, and what of them does not exist: script, command, option, model, precision."""

import re
import shlex
from pathlib import Path

from edge.cli.main import COMMANDS, app
from edge.model.sizes import SIZES
from engines.build_spec import PRECISIONS

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("apt-get", "openssl", "git", "pip", "ssh")


def shell_commands(text):
    """The commands of every sh block, continuation lines joined, comments dropped."""
    blocks = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_commands(text):
    """What stands between backticks and begins with `ufovit ` or `scripts/`, folders left out."""
    return [shlex.split(code) for code in re.findall(r"`((?:ufovit |scripts/)[^`\n]*)(?<!/)`", text)]


def options_of(command):
    """Option names of a command of `ufovit`, None when there is no such command."""
    if command not in COMMANDS:
        return None
    arguments = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    return {"--help", *(name for argument in arguments if argument.parse for name in argument.names if name.startswith("--"))}


def wrong_in_script(words, root=ROOT):
    """What does not exist in `python FILE --options`: the file, or an option that its text does not hold."""
    script, *rest = words
    if not (root / script).is_file():
        return [f"no file {script}"]
    text = (root / script).read_text(encoding="utf-8")
    return [f"no option {w}" for w in rest if w.startswith("--") and f'"{w.partition("=")[0]}"' not in text]


def wrong_in_command(words, root=ROOT):
    """What does not exist in a command line: its script, its command, its options, its model or precision."""
    program, *rest = words
    if program in FOREIGN:
        return []
    if program == "python":
        return wrong_in_script(rest, root)
    if program.startswith("scripts/"):
        script = root / program
        if not (script.is_file() and (script.suffix == ".py" or script.stat().st_mode & 0o111)):
            return [f"{program} is not an executable script"]
        return wrong_in_ufovit(["build", *rest]) if script.name == "build_engine.sh" else []
    return wrong_in_ufovit(rest) if program == "ufovit" else [f"{program} is not ours"]


def wrong_in_ufovit(words):
    """What does not exist in `ufovit WORDS`."""
    if words in (["--help"], ["--version"]):  # of the program itself; test_bad_input runs both
        return []
    known = options_of(words[0])
    if known is None:
        return [f"no command {words[0]}"]
    wrong = [f"no option {word}" for word in words[1:] if word.startswith("--") and word.partition("=")[0] not in known]
    if words[0] == "build" and len(words) > 2 and not words[1].startswith("-"):
        model, precision = words[1:3]
        known_model = model in SIZES or model == "MODEL" or model.endswith((".onnx", ".safetensors", ".pth"))
        wrong += [] if known_model else [f"no model {model}"]
        wrong += [f"no precision {precision}"] if precision not in PRECISIONS and precision != "PRECISION" else []
    return wrong
