"""Mixers: layers that map a sequence to a sequence and mix over positions."""
