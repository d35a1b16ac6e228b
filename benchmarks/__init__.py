"""Our training and answering measured beside that of others: no part of the product, which never imports it.

The verb `benchmark` is verb.py and what it imports: config (settings), contenders (who), work (what they are given, and
their processes), rounds (all in turn), record and results (what a file of results holds, and what that says), tables,
bars and report. A file with a `main` is a program: `python benchmarks/<name>.py`, from a clone of the repository.
"""
