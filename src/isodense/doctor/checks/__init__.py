"""What ``isodense doctor`` checks: each module holds checks of one kind, each check a function.

A check takes a :class:`isodense.doctor.checks.project.Project` and yields findings. It changes
nothing, fetches nothing, and yields nothing about what is not there yet.
"""
