"""Corpus -> tokenizer -> shards -> loaders, with byte accounting and a verified manifest."""
