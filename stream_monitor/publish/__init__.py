"""Verdicts to people and machines: metrics, the HTTP API and console, logs, and sentences on the terminal."""
