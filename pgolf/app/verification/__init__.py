"""What `pgolf verify` looks at: published values, pairs of configurations, every option, and the events of training."""
