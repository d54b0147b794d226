"""Floors: the least that could do the agent's work, each a process of its own.

They read no task, keep no journal, check nothing, and import nothing of ours.
"""
