"""Efforts of calibration (fast, balanced, best) and the refinements that each of them uses."""

from dataclasses import dataclass

from calib.errors import UsageError


@dataclass(frozen=True)
class Effort:
    """A set of refinements.

    Attributes:
        search: scales chosen by the error in the outputs of the layers that read a tensor.
        smooth: factors per channel folded into a preceding normalization or linear layer, at no run-time cost.
        shift: shifts of a tensor's range, folded likewise.
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


def resolve_effort(effort: str | Effort) -> Effort:
    """The effort of a name, or the one given. Raises UsageError, listing the known names."""
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise UsageError(f"unknown effort {effort!r}", where="--effort", allowed=", ".join(EFFORTS))
    return EFFORTS[effort]
