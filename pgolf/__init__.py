"""pgolf: compose, train, compress, score, audit and compare language models that fit in 16 MB."""

__version__ = "0.1.0"
