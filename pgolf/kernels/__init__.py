"""Fast operations, each beside its plain PyTorch reference, and `attend`, the one door to attention back ends."""
