"""How softmax attention is computed: `attend` and what it can choose from."""
