"""From a checkpoint to pictures."""
