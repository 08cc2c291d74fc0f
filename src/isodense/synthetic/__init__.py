"""Requests for 40 skills, from which a data source and a small policy are made."""
