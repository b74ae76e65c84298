"""Shards to batches: order, samples, objectives, packing and the loader of one rank."""
