"""The training loop, the budget clock, checkpoint and resume, and the group of processes that train together."""
