"""Documents to shards: sources, cleaning, deduplication and tokenizing as Ray tasks."""
