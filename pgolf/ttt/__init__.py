"""Evaluation and test-time-training strategies, each a client of the scorer."""
