"""Runs one program on many devices: layouts, meshes, sharding rules and processes."""
