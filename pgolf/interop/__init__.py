"""Exchange with the published record scripts: their reference numbers, weights and shards."""
