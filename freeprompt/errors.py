"""Where the errors were."""

raise ImportError(
    "import errors from freeprompt (from freeprompt import UsageError) or from freeprompt.contract.errors"
)
