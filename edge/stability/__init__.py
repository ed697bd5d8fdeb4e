"""XNorm in the exported graph: where it is, and what reduced precision would do to it."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.stability.certificate import XNormCertificate, read_certificate
    from edge.stability.certify import CertifyConfig, certify_graph, image_budget
    from edge.stability.fp16_network import emulated_agreement
    from edge.stability.islands import fp32_nodes

__all__ = [
    "CertifyConfig",
    "XNormCertificate",
    "certify_graph",
    "emulated_agreement",
    "fp32_nodes",
    "image_budget",
    "read_certificate",
]
__getattr__ = lazy_exports(__name__, __file__)
