"""The fixtures of the engines' tests serve the GPU script's too."""

from tests.engines.conftest import bundle as bundle
