"""The pictures that freeprompt ships: the first scenes of a seed, not the prettiest.

python -m benchmarks.embedded.examples
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.embedded import world

SEED = 2024
COUNT = 3
FOLDER = Path(__file__).parents[2] / "freeprompt" / "examples"


def main() -> None:
    """Write example-1.png, ... and the prompt that `make demo` edits the first by: its own caption, the next colour."""
    FOLDER.mkdir(exist_ok=True)
    scenes = world.sample_scenes(COUNT, SEED)
    for number, picture in enumerate(world.render(scenes), 1):
        Image.fromarray(picture).save(FOLDER / f"example-{number}.png")
    colours = list(world.COLOURS)
    following = colours[(colours.index(scenes[0].colour) + 1) % len(colours)]
    (FOLDER / "prompt.txt").write_text(world.caption(replace(scenes[0], colour=following)) + "\n")


if __name__ == "__main__":
    main()
