"""Speech recognition: recordings, features, and what is made of them."""
