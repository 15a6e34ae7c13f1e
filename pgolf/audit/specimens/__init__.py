"""Procedures whose verdict is known: ones that broke the rules in ways that really happened, and legal ones."""
