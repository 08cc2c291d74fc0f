"""Stage ``difficulty``: how often the untrained policy solves each training prompt."""
