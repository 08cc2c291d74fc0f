"""The commands of ``isodense``, one module each: ``add`` declares its options, ``run`` does it."""
