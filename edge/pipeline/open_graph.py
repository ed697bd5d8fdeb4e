"""The float graph of `ufovit calibrate` and `ufovit certify`: one of this toolkit as it is, any other imported first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from calib.files import sha256_bytes
from calib.graph import load_graph
from calib.qdq_writer import serialize
from edge.images.graph_input import parse_normalisation
from edge.images.preprocess import Preprocess, Tensor
from edge.model.metadata import CheckpointInfo, graph_preprocess, read_graph_info
from edge.model.network_file import NetworkFile
from edge.onnx_import.external_data import read_model
from edge.pipeline.network_options import InputOptions
from edge.pipeline.onnx_options import import_options, preprocess_of

if TYPE_CHECKING:
    from edge.onnx_import import Imported


@dataclass(frozen=True)
class OpenedGraph:
    """A float graph.

    Attributes:
        path: of the file as given, which errors name.
        data: bytes of the graph; those of the file where nothing had to be changed.
        info: metadata of the network, None for a graph of another origin.
        imported: the import of a graph of another origin, None where the file is used as it is.
    """

    path: Path
    model: onnx.ModelProto
    data: bytes
    info: CheckpointInfo | None
    imported: Imported | None

    @property
    def sha256(self) -> str:
        """Digest of the graph."""
        return sha256_bytes(self.data)

    def preprocess(self, options: InputOptions, command: str) -> Preprocess:
        """From pixels to the graph's input; an error says to run `command` with --mean and --std. Raises InputError."""
        if self.imported is None:
            normalisation = parse_normalisation(options.mean, options.std)
            return graph_preprocess(self.model, self.path, self.info, normalisation, command)
        return preprocess_of(self.imported, options, NetworkFile(), command)


def open_graph(path: Path, options: InputOptions, *, as_is: bool = False) -> OpenedGraph:
    """Open a graph; `as_is` takes the file without an import, for one that other artifacts refer to. Raises InputError."""
    from edge.onnx_import import import_onnx

    model, _, _ = read_model(path)
    info = read_graph_info(model, path)
    if as_is or info is not None:
        model, data = load_graph(path)
        return OpenedGraph(path, model, data, info, None)
    imported = import_onnx(path, import_options(options))
    data = path.read_bytes() if not imported.changes else serialize(imported.model)
    return OpenedGraph(path, imported.model, data, None, imported)


def rewrite_graph(graph: OpenedGraph, batches: Iterable[Tensor]) -> tuple[OpenedGraph, tuple[str, ...]]:
    """Rewrite what an exporter wrote in pieces, checked on the images; the graph, and a sentence per kind of operator.

    Raises VerdictError when the imported graph does not compute what the file as given computes.
    """
    if graph.imported is None:
        return graph, ()
    from edge.onnx_import import rewrite

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    record = rewrite(model, list(batches), graph.imported)
    lines = tuple(
        f"{result.kind}: {sum(bool(node.into) for node in result.nodes)} rewritten"
        + ("" if result.kept else f", undone: {result.reason}")
        for result in record.rewriters
        if any(node.into for node in result.nodes)
    )
    kept = any(result.kept and any(node.into for node in result.nodes) for result in record.rewriters)
    data = serialize(model) if kept else graph.data
    return OpenedGraph(graph.path, model if kept else graph.model, data, None, graph.imported), lines
