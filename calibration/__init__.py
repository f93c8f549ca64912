"""Calibration sets, datasets, metrics and validation: what accuracy is measured with."""
