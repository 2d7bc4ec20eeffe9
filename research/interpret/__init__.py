"""Methods that show what a model does: measures, attribution, capture, patching."""
