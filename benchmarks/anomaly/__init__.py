"""Outliers in tables and anomalies in images."""
