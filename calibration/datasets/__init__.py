"""Data sets: one file each, one interface (``base.py``), one row each in ``registry.py``."""
