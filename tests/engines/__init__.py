"""Tests of the engines: TensorRT and CUDA without a GPU."""
