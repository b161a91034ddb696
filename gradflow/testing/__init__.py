"""Tests of derivatives: strategies for hypothesis, random programs, and backends without kernels."""
