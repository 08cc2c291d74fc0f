"""Checks of ``isodense doctor``: each module holds checks of one kind, each check a function.

A check takes a :class:`isodense.doctor.checks.project.Project` and yields findings. It changes
nothing and fetches nothing, and yields nothing about artifacts that do not exist yet.
"""
