"""TensorRT and TensorRT for RTX: what their parsers take of a graph, and what builds their engines; no torch here."""
