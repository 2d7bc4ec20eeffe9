"""The report of a sweep: its tables, figures and page, and the command that writes them.

Reads results of runs and never trains. `judging` passes the verdicts on claims.
"""
