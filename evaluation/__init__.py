"""Scores of a model: Sec. 4 "Metrics"."""
