"""TensorRT and TensorRT-RTX: the only importer of their Python API, and one backend each."""
