"""Experiments that run the whole loop."""
