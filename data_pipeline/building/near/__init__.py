"""Documents that are nearly copies of others: found by sketches, removed only where a comparison of both says so."""
