"""The one place that states versions: charlm's, and that of the oldest torch it works with."""

__version__ = "0.1.0"
# Also of the stable interface that the compiled part is built for. pyproject.toml has to repeat it.
OLDEST_TORCH = (2, 10)
