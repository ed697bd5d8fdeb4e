"""Import torchvision beside a torch without CUDA: the wheel's compiled operators do not load there, and none is used here.

torchvision describes its operators `nms` and `qnms` to torch at import, which fails unless they exist. A declaration without an
implementation is enough: an attempt to run it raises. Import this module before torchvision or timm.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch ships no types of it
for operator in ("nms", "qnms"):
    LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
