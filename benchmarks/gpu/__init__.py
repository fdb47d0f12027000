"""Measurements that need a GPU: see README.md and ``benchmarks/gpu_check.py``."""
