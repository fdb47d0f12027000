"""Training of the embedded model's parts."""
