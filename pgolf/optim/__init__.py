"""Optimisers, the roles they serve, schedules, and weight averaging."""
