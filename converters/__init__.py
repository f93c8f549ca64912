"""Host side: checkpoint -> torch module -> ONNX -> INT8 -> verified bundle. One file per step."""
