"""What this package raises."""


class ShapeError(ValueError):
    """The model cannot be split, partitioned or read as asked. The message names the way out."""
