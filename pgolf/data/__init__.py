"""Corpus -> tokenizer -> shards -> loaders, with byte accounting and a manifest that is verified."""
