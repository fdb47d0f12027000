"""Stable Diffusion 1.5's size on the CPU, with random weights."""
