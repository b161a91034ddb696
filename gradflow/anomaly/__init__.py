"""Hunting NaN and infinities: which operation produced the first, where, from what, and how to mend it."""

from gradflow.anomaly.hunt import detect_anomaly

__all__ = ["detect_anomaly"]
