"""The benchmark: the installed command beside the least that could do the same.

Nothing here imports the package. `README.md` says what is measured and how to read it.
"""
