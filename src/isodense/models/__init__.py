"""Stage ``models``: frozen weights, one module per source of them."""
