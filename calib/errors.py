"""The exception tree of the toolkit and the exit code that each branch stands for.

    UfovitError            never raised itself
     +- VerdictError    1  a check said no: drift, stability, gate, receipt
     +- InputError      2  bad usage or bad input
     +- EvidenceError   3  not enough evidence to say
     +- MissingError    4  something that this machine lacks

Every message answers: what went wrong, where, what was found, what is allowed, and what to run next.
"""

from __future__ import annotations

from typing import ClassVar


class UfovitError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: one sentence, no trailing dot.
        where: file, tensor, node or option concerned.
        found: the offending value.
        allowed: what would have been accepted.
        next_command: the command, or the step, that mends it.
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
    ) -> None:
        parts = [what]
        for label, value in (("where", where), ("found", found), ("allowed", allowed), ("next", next_command)):
            if value is not None:
                parts.append(f"  {label}: {value}")
        super().__init__("\n".join(parts))


class VerdictError(UfovitError):
    """A check was carried out and failed."""

    exit_code = 1


class InputError(UfovitError):
    """Bad usage or bad input."""

    exit_code = 2


class EvidenceError(UfovitError):
    """The data do not suffice for a verdict."""

    exit_code = 3


class MissingError(UfovitError):
    """This machine lacks a library, a device or a permission."""

    exit_code = 4


class BackendError(InputError):
    """A backend refused a graph or gave nothing back; `log` holds what its library said, in order."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        next_command: str | None = None,
        log: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, where=where, found=found, next_command=next_command)
        self.log = log
