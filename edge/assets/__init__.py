"""What is shipped, so that the first command does something true: a trained ufovit_t, its test and calibration images."""

from pathlib import Path

__all__ = ["ASSETS", "CALIBRATION_IMAGES", "SHIPPED_CHECKPOINT", "SHIPPED_MODEL", "TEST_IMAGES"]

ASSETS = Path(__file__).resolve().parent
SHIPPED_MODEL = "ufovit_t"
SHIPPED_CHECKPOINT = ASSETS / "ufovit_t.safetensors"
TEST_IMAGES = ASSETS / "test-images-idx3-ubyte.gz"
CALIBRATION_IMAGES = ASSETS / "calibration-images-idx3-ubyte.gz"
