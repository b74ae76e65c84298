"""What a run will take before a GPU is spent on it: memory, arithmetic, bytes sent and time, from its config alone."""
