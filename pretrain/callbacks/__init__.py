"""What happens around the training step: checkpoints, signals, scores, metrics, progress."""
