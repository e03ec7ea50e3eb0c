"""Unimind: reconstruct seen images from fMRI with one model for many subjects."""

__version__ = "0.1.0"
