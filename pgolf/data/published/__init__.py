"""Published shards: the hub, downloading, and what is known about them."""
