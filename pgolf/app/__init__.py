"""The command line: the only place that knows Hydra, OmegaConf, Weights & Biases and rich."""
