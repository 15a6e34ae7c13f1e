"""Text to tokens and bytes, and back: transforms, tokenizers, the byte counts of tokens."""
