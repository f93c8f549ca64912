"""Pose models: registry rows (no torch) and torch definitions, one file per family."""
