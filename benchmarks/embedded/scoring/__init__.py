"""Scoring of the embedded model's edits."""
