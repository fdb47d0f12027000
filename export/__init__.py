"""From a diffusers checkpoint to a bundle. The only part that imports PyTorch."""
