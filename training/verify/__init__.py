"""The proof that ranks train as a plain loop does: a run made small, its ranks, the loop, and the comparison."""
