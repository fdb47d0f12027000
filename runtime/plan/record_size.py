"""How large recorded rows are, and how many are recorded at once; for the runtime and for builds of engines alike."""

from __future__ import annotations

import numpy as np

from freeprompt.contract.manifest import Manifest

# Source rows in one evaluation of the record graph. On the embedded model, one CPU thread, a row takes 21.3 ms alone,
# 20.4 in a batch of 2, 17.4 of 4, 15.7 of 8 (medians of 6); but each step that reads one row is given the whole batch.
RECORD_ROWS = 4
# Most bytes of recorded rows in one evaluation. They are its output, beside the activations that the same rows
# need, and a step is given all of them. 4 rows of Stable Diffusion 1.5 at 512x512 in float16 are 40 MB; at 1024x1024
# one row is.
RECORD_PASS_BYTES = 64 << 20


def record_row_bytes(manifest: Manifest, height: int, width: int) -> int:
    """Bytes of one recorded row over all recordable layers, for latents of ``height`` x ``width``."""
    size = np.dtype(manifest.precision).itemsize
    return sum(
        height * width // 4**layer.level * layer.channels * size for layer in manifest.layers if layer.recordable
    )


def record_rows(manifest: Manifest, height: int, width: int) -> int:
    """Source rows that one evaluation of the record graph takes, for latents of ``height`` x ``width``."""
    size = record_row_bytes(manifest, height, width)
    return max(1, min(RECORD_ROWS, RECORD_PASS_BYTES // size)) if size else RECORD_ROWS
