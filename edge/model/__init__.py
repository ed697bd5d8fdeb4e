"""The network in torch: attention, blocks, sizes, checkpoints."""
