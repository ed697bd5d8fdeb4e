"""What a finder knows of a site, before the tensors of the graph are shared out among the sites."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import onnx

from edge.stability.finders.site_graph import SiteGraph
from edge.stability.site import Eps, Probe, SiteKind


@dataclass(frozen=True)
class Draft:
    """A site without the probes of its stored tensors: those are added where no earlier site has them.

    Attributes:
        kind, reads, axes, eps: as in `Site`.
        node: the node that the site is known by.
        output: the tensor that it computes.
        nodes: all nodes of it, `node` included, in any order.
        inner: probes of what no tensor of the graph holds; a product keeps its own where its result is another site's.
        divides: stored tensors that something divides by.
        saturates: stored tensors and constants -> which infinities change nothing in them.
    """

    kind: SiteKind
    node: onnx.NodeProto
    output: str
    nodes: tuple[onnx.NodeProto, ...]
    reads: str
    axes: tuple[int, ...] = ()
    eps: tuple[Eps, ...] = ()
    inner: tuple[Probe, ...] = ()
    divides: frozenset[str] = frozenset()
    saturates: dict[str, Literal["below", "both"]] = field(default_factory=dict)


Finder = Callable[[SiteGraph], Iterator[Draft]]
