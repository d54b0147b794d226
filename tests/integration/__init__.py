"""Rooms of the agent against real servers, processes and files; no whole daemon."""
