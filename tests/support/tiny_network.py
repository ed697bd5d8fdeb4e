"""The shape of the network that most tests of edge use: small, with every kind of layer."""

from edge.model.sizes import UfoVitConfig

TINY = UfoVitConfig("ufovit_tiny", depth=2, dim=32, heads=2, image_size=32, classes=5)
