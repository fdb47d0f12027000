"""The implementations that freeprompt is compared with, and that tests measure it against."""
