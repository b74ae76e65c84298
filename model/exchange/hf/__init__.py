"""Modeling files that are put into exported folders, for models that no class of transformers computes."""
