"""Stage ``report``: the page people look at."""
