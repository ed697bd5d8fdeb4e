"""Repairs of sites that FP16 cannot compute: scaling by powers of two where that is exact, FP32 islands elsewhere."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.stability.repairs.fp32_islands import plan_islands
    from edge.stability.repairs.norm_scaling import check_scaled_ranges, scale_norms

__all__ = ["check_scaled_ranges", "plan_islands", "scale_norms"]
__getattr__ = lazy_exports(__name__, __file__)
