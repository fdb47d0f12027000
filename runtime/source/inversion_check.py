"""Whether an inversion fits a bundle: it may have come from a file, whose header anybody can write."""

from __future__ import annotations

from freeprompt.contract.errors import InversionError
from freeprompt.contract.graphs import record_tensors
from freeprompt.contract.manifest import Manifest
from freeprompt.runtime.inputs.arguments import check_size
from freeprompt.runtime.plan.schedule import Schedule
from freeprompt.runtime.source.inversion import Inversion


def check_inversion(inversion: Inversion, manifest: Manifest, schedule: Schedule) -> None:
    """Raise InversionError unless the bundle's graphs can take its latents and recorded rows.

    Args:
        schedule: of as many steps as the inversion has.
    """
    channels, height, width = inversion.shape
    latents = manifest.latents
    try:
        check_size(latents, (width * latents.scale, height * latents.scale))
    except ValueError as error:
        raise InversionError(f"this inversion is of no size that the model takes: {error}") from error
    if channels != latents.channels:
        raise InversionError(f"this inversion has latents of {channels} channels, the model of {latents.channels}")
    for record in inversion.records.values():
        for made, rows in zip(record.passes, record.rows):
            if made.timesteps != tuple(schedule.timesteps[level - 1] for level in made.levels):
                raise InversionError(
                    f"this inversion recorded at timesteps {made.timesteps}, which are not its levels'"
                )
            expected = {
                tensor.name: ((len(made.levels), height * width // 4**layer.level, layer.channels), tensor.dtype)
                for layer, tensor in zip(
                    (layer for layer in manifest.layers if layer.recordable),
                    record_tensors(manifest.layers, "rows", manifest.precision),
                )
            }
            found = {name: (array.shape, str(array.dtype)) for name, array in rows.items()}
            if found != expected:
                wrong = min({*found.items()} ^ {*expected.items()})[0]
                raise InversionError(
                    f"this inversion recorded {wrong[:60]!r} as {found.get(wrong)}, the model has {expected.get(wrong)}"
                )
