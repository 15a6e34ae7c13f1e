"""Documents into a prepared directory, on every core, resumable by shard."""
