"""Benchmarks of apa_det against alternatives: ``python -m benchmarks`` or ``make benchmark``."""
