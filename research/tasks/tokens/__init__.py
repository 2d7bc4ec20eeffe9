"""Language modelling on corpora of token shards, and the shards themselves."""
