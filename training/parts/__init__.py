"""What happens beside the steps of a run, each thing a part with its own state (see part.py)."""
