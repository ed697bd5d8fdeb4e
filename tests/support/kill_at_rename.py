"""A command killed at its first rename, run again and killed at the second of what is left, and so on, until it ends."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = 20
_PROGRAM = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {roots!r}
    import matplotlib, onnx, onnxruntime, torch  # once, not again in every run
    from edge.cli import run
    {prepare}
    replace = Path.replace
    for nth, _line in enumerate(sys.stdin, start=1):
        process = os.fork()
        if not process:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            renames = []
            def replace_or_die(self, target):
                renames.append(target)
                if len(renames) == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replace(self, target)
            Path.replace = replace_or_die
            os._exit(run({arguments!r}))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
""")


def exit_codes(arguments: list[str], prepare: str = "") -> Iterator[int]:
    """Exit codes of `ufovit ARGUMENTS`, the first run killed at its first rename, the n-th at its n-th; -9 for a killed one.

    One process imports the libraries and forks each run. `prepare` are its statements before that, one per line; they must not
    start threads.
    """
    roots = [str(ROOT / "tests" / "support"), str(ROOT)]
    program = _PROGRAM.format(roots=roots, prepare=prepare, arguments=[str(argument) for argument in arguments])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        for _ in range(RUNS):
            process.stdin.write("\n")
            process.stdin.flush()
            yield int(process.stdout.readline())
        process.stdin.close()
