"""The networks of the benchmark: which library builds each, and how it is exported, in the ways that people export networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Architecture:
    """One network and one export of it.

    Attributes:
        library: "timm", "torchvision", or "own": a function of own_networks.
        model: the library's name of it.
        size: (height, width) of the images that it is exported and tried with.
        exporter: "ts" (TorchScript) or "dynamo"; None for `opset` takes the exporter's default.
        free: axes that the export leaves free: "batch", or "batch height width".
        dense: an answer per pixel or anchor, not one row of class scores.
        wrap: name of the wrapper in own_networks that makes tensors of the answer, "" for none.
        arguments: passed to the library's constructor.
    """

    library: Literal["timm", "torchvision", "own"]
    model: str
    size: tuple[int, int]
    exporter: Literal["ts", "dynamo"]
    opset: int | None
    free: Literal["", "batch", "batch height width"] = "batch"
    dense: bool = False
    wrap: str = ""
    norm: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    arguments: Mapping[str, Any] = field(default_factory=dict)


def timm(model: str, exporter: Literal["ts", "dynamo"], opset: int | None, size: int = 224, **further: Any) -> Architecture:
    return Architecture("timm", model, (size, size), exporter, opset, **further)


def vision(model: str, exporter: Literal["ts", "dynamo"], opset: int | None, size: int = 224, **further: Any) -> Architecture:
    return Architecture("torchvision", model, (size, size), exporter, opset, **further)


SMALL_SWIN = {"embed_dim": 48, "depths": (2, 2, 2, 2)}
EVERYTHING_FREE: Literal["batch height width"] = "batch height width"

ARCHITECTURES: dict[str, Architecture] = {
    "mobilenet_v3_small-ts": vision("mobilenet_v3_small", "ts", 14),
    "levit_128s-dynamo": timm("levit_128s", "dynamo", 18),
    "vit_tiny-ts": timm("vit_tiny_patch16_224", "ts", 14, norm=HALF),
    "resnet18-ts": timm("resnet18", "ts", 11),
    "swin_v2_t-ts": vision("swin_v2_t", "ts", 17, 256),
    "deeplabv3_mobilenet-ts": vision(
        "deeplabv3_mobilenet_v3_large", "ts", 12, dense=True, wrap="Maps", arguments={"aux_loss": True}
    ),
    "vit_tiny-dynamo": timm("vit_tiny_patch16_224", "dynamo", None, norm=HALF),
    "convnext_atto-dynamo": timm("convnext_atto", "dynamo", 18),
    "efficientnet_lite0-ts": timm("efficientnet_lite0", "ts", 13, free="", norm=HALF),
    "mobilenet_v2-dynamo": vision("mobilenet_v2", "dynamo", None),
    "xcit_nano-dynamo": timm("xcit_nano_12_p16_224", "dynamo", 18),
    "mobilevit_xs-ts": timm("mobilevit_xs", "ts", 14, 256, norm=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    "densenet121-ts": vision("densenet121", "ts", 12),
    "deit_tiny-ts": timm("deit_tiny_patch16_224", "ts", 17),
    "efficientformer_l1-ts": timm("efficientformer_l1", "ts", 16, free=""),
    "efficientnet_b0-dynamo": vision("efficientnet_b0", "dynamo", 18),
    "mobilenet_v3_large-dynamo": vision("mobilenet_v3_large", "dynamo", None),
    "regnet_y_400mf-ts": vision("regnet_y_400mf", "ts", 13),
    "unet-ts": Architecture("own", "UNet", (192, 160), "ts", 17, EVERYTHING_FREE, dense=True),
    "poolformer_s12-dynamo": timm("poolformer_s12", "dynamo", 18),
    "ghostnet-ts": timm("ghostnet_100", "ts", 14),
    "cait_xxs24-ts": timm("cait_xxs24_224", "ts", 17, free=""),
    "eva02_tiny-dynamo": timm("eva02_tiny_patch14_224", "dynamo", None, norm=HALF),
    "beit_tiny-ts": timm("beit_base_patch16_224", "ts", 17, norm=HALF, arguments={"embed_dim": 192, "num_heads": 3}),
    "mixer_s32-ts": timm("mixer_s32_224", "ts", 13, norm=HALF),
    "gmlp_ti16-dynamo": timm("gmlp_ti16_224", "dynamo", 18, norm=HALF),
    "coatnet_nano-ts": timm("coatnet_nano_rw_224", "ts", 17, norm=HALF),
    "maxvit_pico-dynamo": timm("maxvit_rmlp_pico_rw_256", "dynamo", None, 256, norm=HALF, free=""),
    "repvgg_a0-ts": timm("repvgg_a0", "ts", 11, free=""),
    "squeezenet1_1-ts": vision("squeezenet1_1", "ts", 11),
    "shufflenet_v2-ts": vision("shufflenet_v2_x1_0", "ts", 12),
    "resnet50-dynamo": vision("resnet50", "dynamo", None),
    "lraspp_mobilenet-ts": vision("lraspp_mobilenet_v3_large", "ts", 11, free=EVERYTHING_FREE, dense=True, wrap="Maps"),
    "ssdlite320-ts": vision("ssdlite320_mobilenet_v3_large", "ts", 14, 320, free="", dense=True, wrap="Heads"),
    "retinanet_r50-ts": vision("retinanet_resnet50_fpn", "ts", 17, 192, dense=True, wrap="Heads"),
    "fcos_r50-dynamo": vision("fcos_resnet50_fpn", "dynamo", 18, 192, free="", dense=True, wrap="Heads"),
    "fcn_r50-dynamo": vision("fcn_resnet50", "dynamo", 18, 128, dense=True, wrap="Maps"),
    "vit_small-dynamo": timm("vit_small_patch16_224", "dynamo", None, norm=HALF),
    "edgenext_xxs-ts": timm("edgenext_xx_small", "ts", 17, 256),
    "efficientvit_b0-dynamo": timm("efficientvit_b0", "dynamo", 18),
    "tiny_vit_5m-ts": timm("tiny_vit_5m_224", "ts", 16),
    "fastvit_t8-dynamo": timm("fastvit_t8", "dynamo", None, 256),
    "pvt_v2_b0-ts": timm("pvt_v2_b0", "ts", 14),
    "mobilenetv4_small-dynamo": timm("mobilenetv4_conv_small", "dynamo", 18),
    "dinov2_small-ts": timm(
        "vit_small_patch14_reg4_dinov2", "ts", 17, free=EVERYTHING_FREE, arguments={"img_size": 224, "dynamic_img_size": True}
    ),
    "resnetv2_bit-ts": timm("resnetv2_50x1_bit", "ts", 13, 160, norm=HALF),
    "sequencer2d_s-ts": timm("sequencer2d_s", "ts", 14, free=""),
    "googlenet-ts": vision("googlenet", "ts", 12, norm=HALF, arguments={"aux_logits": False, "transform_input": True}),
    "convnextv2_atto-ts": timm("convnextv2_atto", "ts", 17, 160),
    "convnextv2_atto-dynamo": timm("convnextv2_atto", "dynamo", 18, 160),
    "deit_tiny-dynamo": timm("deit_tiny_patch16_224", "dynamo", 18),
    "xcit_nano-ts": timm("xcit_nano_12_p16_224", "ts", 17),
    "swinv2_mini-ts": timm("swinv2_tiny_window8_256", "ts", 17, 256, arguments=SMALL_SWIN),
    "swinv2_mini-dynamo": timm("swinv2_tiny_window8_256", "dynamo", 18, 256, arguments=SMALL_SWIN),
}
