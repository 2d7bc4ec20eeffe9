"""Pages and pictures of a trained model's activations on one input, and their command.

Builds on the methods of `interpret`; opens runs through `training`.
"""
