"""The function of python.yml.example."""

from __future__ import annotations


def add(a: float, b: float) -> float:
    """The sum of two numbers."""
    return a + b
