"""The graphs of a real INT8 build of the tiny network, as a CPU and as a GPU gets them, and its attribution."""

import json
from dataclasses import replace

import numpy as np
import pytest
from attribution_graphs import FILE
from tiny_project import LABELS

from edge.attribution.attribute import attribute_graphs
from edge.attribution.build_graphs import LoadedGraph, load_graphs
from edge.images.labelled_images import open_images
from edge.images.preprocess import Preprocess
from engines.build_folder.folder import BuildFolder
from engines.typed_graph import type_graph


@pytest.fixture(scope="session")
def graphs(built):
    return load_graphs(BuildFolder(built / "out"))


@pytest.fixture(scope="session")
def images(built):
    stated = json.loads((built / "out" / "manifest.json").read_text())["preprocess"]
    preprocess = Preprocess.from_json({k: v for k, v in stated.items() if k != "sha256"})
    return np.concatenate(list(open_images(built / "test", LABELS).batches(preprocess, 80)))


@pytest.fixture(scope="session")
def honest(graphs, images):
    return attribute_graphs(graphs, images)


@pytest.fixture(scope="session")
def typed(graphs):
    """The same build as a GPU gets it: FP16 and Q/DQ."""
    return replace(graphs, judged=LoadedGraph(FILE, type_graph(graphs.judged.model)), between=())
