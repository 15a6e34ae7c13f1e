"""Tests of pgolf.data."""
