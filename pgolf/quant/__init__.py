"""Calibration, quantisation schemes, entropy coders and the artifact container."""
