"""What the outputs of a network mean, one task per folder."""
