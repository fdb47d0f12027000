"""Every error that freeprompt raises on purpose.

Errors of other libraries are translated where they arise, so that a caller needs to know these only. A message says
what was wrong, what was expected and, where something can be done about it, what to do.
"""

from __future__ import annotations


class FreePromptError(Exception):
    """Base class of all errors raised on purpose."""


class UsageError(FreePromptError, ValueError):
    """An argument has a value that cannot be used: out of range, unknown, not finite."""


class ImageError(FreePromptError):
    """An image cannot be read, or has a size or mode that cannot be used."""


class BundleError(FreePromptError):
    """A bundle is missing, damaged, of an unknown format, or does not hold what was asked of it."""


class CheckpointError(FreePromptError):
    """A checkpoint cannot be loaded, or is not of a kind that can be exported."""


class ExportError(FreePromptError):
    """A graph could not be exported, or does not agree with the model it was exported from."""


class BackendError(FreePromptError):
    """A backend is unknown, not installed, or failed while it ran."""


class LimitError(FreePromptError):
    """A call would need, or has taken, more memory or time than there is or is allowed."""


class InversionError(FreePromptError):
    """A saved inversion is damaged, or belongs to another bundle."""


class OutputError(FreePromptError):
    """A result could not be written."""


class Cancelled(FreePromptError):  # noqa: N818  (it is no error; callers say "except Cancelled")
    """Raised by a progress callback to stop; passes through every stage unchanged."""


class FreePromptWarning(UserWarning):
    """Base class of all warnings: the result is made, and may not be what was meant."""


class PromptTruncatedWarning(FreePromptWarning):
    """A prompt has more tokens than the text encoder takes; the rest was cut."""


class NegativePromptUnusedWarning(FreePromptWarning):
    """A negative prompt was given where guidance is off, and says nothing there."""


class ImageCroppedWarning(FreePromptWarning):
    """Cropping left a large part of an image out."""


class ProviderUnusedWarning(FreePromptWarning):
    """An execution provider of ONNX Runtime takes no node of a graph, which runs on the CPU."""


class CheckpointWarning(FreePromptWarning):
    """A checkpoint has something that its bundle does not use, such as a ControlNet."""
