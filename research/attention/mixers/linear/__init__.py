"""Mixers whose cost is linear in the length: parallel, chunkwise and recurrent forms."""
