"""Experts that are mixed into the distributions of any strategy: `ttt/experts=[ngram_tilt, tap_in]`."""
