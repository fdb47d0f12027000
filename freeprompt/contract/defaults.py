"""The reference implementation's defaults, for the API and the command line alike. Imports nothing: help is quick."""

from __future__ import annotations

STEPS = 50
GUIDANCE = 7.5
FIT = "crop"
# Share of the steps that replace maps: of a real image, and of a generated one.
REAL_FRACTION = 0.8
SYNTHETIC_FRACTION = 0.4
