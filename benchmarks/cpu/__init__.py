"""The CPU suite: python -m benchmarks.cpu.run."""
