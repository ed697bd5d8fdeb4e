"""Every place of a network where 16 bits can fail: where it is, what is proven and observed of it, its exact repair."""

from typing import TYPE_CHECKING

from calib.package_face import lazy_exports

if TYPE_CHECKING:
    from edge.stability.certificate import XNormCertificate, read_certificate
    from edge.stability.certify import CertifyConfig, certify_graph, image_budget
    from edge.stability.fp16_network import emulated_agreement
    from edge.stability.islands import fp32_nodes
    from edge.stability.network_certificate import NetworkCertificate, read_network_certificate
    from edge.stability.network_certification import certify_network

__all__ = [
    "CertifyConfig",
    "NetworkCertificate",
    "XNormCertificate",
    "certify_graph",
    "certify_network",
    "emulated_agreement",
    "fp32_nodes",
    "image_budget",
    "read_certificate",
    "read_network_certificate",
]
__getattr__ = lazy_exports(__name__, __file__)
