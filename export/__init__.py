"""From a diffusers checkpoint to a bundle. The only part that imports PyTorch."""

import os

# Nothing is sent anywhere: huggingface_hub reads this when it is first imported, and its requests then say nothing of
# this machine. Whoever has set it keeps what he has set.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
