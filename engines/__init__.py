"""Executing the graphs of a bundle: the session protocol and its backends."""
