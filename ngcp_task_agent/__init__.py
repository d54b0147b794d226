"""NGCP task agent: runs configured tasks on request and streams the answers back."""

from __future__ import annotations

__version__ = "2.0.0"
