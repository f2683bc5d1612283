"""Weights: where they are (`source`), how they come to a node once (`fetching`, `cache`), and how they become smaller (`convert`)."""
