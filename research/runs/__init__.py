"""The files of a run: results, metrics and training records.

Imports only `errors` from the project.
"""
