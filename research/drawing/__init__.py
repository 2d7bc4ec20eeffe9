"""Building blocks of pages: charts, Markdown tables and HTML templates.

Independent of runs and experiments.
"""
