"""The network: layers, blocks, stacks, shapes and the loss."""
