"""Which refinements an effort uses."""

from __future__ import annotations

from dataclasses import dataclass

from calib.errors import InputError


@dataclass(frozen=True)
class Effort:
    """A set of refinements.

    Attributes:
        search: scales chosen by the error that they make behind the layer.
        smooth: factors moved into a normalization or a linear layer in front, at no run-time cost.
        shift: zeros moved likewise.
        insert: factors and shifts also where they need a node of their own.
        rounding: second-order rounding of the weights.
        bias: bias correction.
    """

    search: bool = False
    smooth: bool = False
    shift: bool = False
    insert: bool = False
    rounding: bool = False
    bias: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The refinements in use, for a record."""
        return tuple(name for name, used in vars(self).items() if used)


EFFORTS: dict[str, Effort] = {
    "fast": Effort(),
    "balanced": Effort(search=True, smooth=True, shift=True, rounding=True, bias=True),
    "best": Effort(search=True, smooth=True, shift=True, insert=True, rounding=True, bias=True),
}


def resolve_effort(wanted: str | Effort) -> Effort:
    """The effort of a name, or the one that is given. Raises InputError with the known names."""
    if isinstance(wanted, Effort):
        return wanted
    if wanted not in EFFORTS:
        raise InputError(f"unknown effort {wanted!r}", allowed=", ".join(EFFORTS))
    return EFFORTS[wanted]
