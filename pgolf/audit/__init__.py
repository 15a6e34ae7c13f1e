"""The probes of the four validity conditions, and known-bad strategies that they must catch."""
