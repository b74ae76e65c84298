"""Attention and other kernels, and the patterns that say who attends to whom."""
