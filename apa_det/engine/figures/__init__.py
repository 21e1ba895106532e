"""Figures of a training: its results, batch, labels and predictions."""
