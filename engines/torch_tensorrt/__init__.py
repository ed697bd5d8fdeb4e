"""Backend torch-tensorrt: the ONNX graph as a torch program, compiled in an environment of its own."""
