"""The embedded model, its oracle, and figures."""

# Before any benchmark imports onnxruntime: it turns the library's telemetry off.
import freeprompt  # noqa: F401
