"""Checks of a prepared directory: everything it says is computed again."""
