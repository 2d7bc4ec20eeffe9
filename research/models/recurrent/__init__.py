"""Recurrent networks, with and without attention."""
