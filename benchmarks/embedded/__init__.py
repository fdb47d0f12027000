"""The embedded model: a small Stable Diffusion trained on scenes that it can be judged against."""
