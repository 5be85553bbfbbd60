"""The built-in depth predictor: its network, its training set and its training."""
