"""Backend ONNX Runtime: the engine file is the optimized ONNX model."""
