"""Pages and pictures of what a trained model does with one input, and the command for them.

Builds on the methods of `interpret`; opens runs through `training`.
"""
