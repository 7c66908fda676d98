"""Latency tables: milliseconds per layer on one target, measured or estimated, always with their provenance."""
