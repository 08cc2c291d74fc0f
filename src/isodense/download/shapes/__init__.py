"""Shapes of prompt data: which columns hold what, recognised by name and type or mapped."""

from isodense.download.shapes.shape import Shape, shape_of

__all__ = ["Shape", "shape_of"]
