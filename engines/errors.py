"""Errors of engine building, on top of `calib.errors`."""

from __future__ import annotations

from calib.errors import InputError


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
