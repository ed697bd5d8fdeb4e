"""The exceptions of the toolkit and the exit code of each branch.

    UfovitError              never raised itself
     +- VerdictError    1    a check failed: drift, stability, gate, receipt
     +- InputError      2    bad usage or bad input, none of the following kinds
     |   +- UsageError       an option, an argument or a combination of them
     |   +- DataError        images, labels or arrays given by the user
     |   +- GraphError       an ONNX graph
     |   |   +- BackendError     a backend refused the graph; holds the log of its library
     |   +- ArtifactError    a file or folder that the toolkit wrote: damaged, stale, foreign or unsigned
     +- EvidenceError   3    not enough evidence for a verdict
     +- MissingError    4    something that this machine lacks

Raise the most specific class: callers tell failures apart by it. Every message answers: what went wrong, where, what was
found, what is allowed, and what to run next.
"""

from typing import ClassVar

from calib.printable import one_line, printable


class UfovitError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: one sentence, no trailing dot.
        where: file, tensor, node or option concerned.
        next_command: the command or the step that resolves it.
        log: messages of the library that refused, in order; not part of the text.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        allowed: object = None,
        next_command: str | None = None,
        log: tuple[str, ...] = (),
    ) -> None:
        self.next_command, self.log = next_command, log
        self.what, self.where, self.found, self.allowed = what, where, found, allowed
        details = (("where", where), ("found", found), ("allowed", allowed), ("next", next_command))
        # a further line of a value is indented: it cannot pass for a detail of its own
        lines = (f"  {label}: {value}".replace("\n", "\n    ") for label, value in details if value is not None)
        super().__init__(printable("\n".join([one_line(what), *lines])))

    def at(self, where: object) -> "UfovitError":
        """The same error at a place; itself where it has one already."""
        if self.where is not None:
            return self
        return type(self)(
            self.what, where=where, found=self.found, allowed=self.allowed, next_command=self.next_command, log=self.log
        )


class VerdictError(UfovitError):
    """A check was carried out and failed."""

    exit_code = 1


class InputError(UfovitError):
    """Bad usage or bad input."""

    exit_code = 2


class UsageError(InputError):
    """An option or argument is invalid, or options contradict each other."""


class DataError(InputError):
    """Images, labels or arrays given by the user are invalid."""


class GraphError(InputError):
    """An ONNX graph is invalid or not supported."""


class BackendError(GraphError):
    """A backend refused a graph or returned nothing; `log` holds the messages of its library."""


class ArtifactError(InputError):
    """A file or folder written by the toolkit is damaged, stale, foreign or unsigned."""


class EvidenceError(UfovitError):
    """The data are not sufficient for a verdict."""

    exit_code = 3


class MissingError(UfovitError):
    """This machine lacks a library, a device or a permission."""

    exit_code = 4
