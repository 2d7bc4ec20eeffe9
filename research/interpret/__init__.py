"""Interpretability methods: head measures, attribution, activation capture and patching."""
