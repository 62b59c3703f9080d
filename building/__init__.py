"""What setup.py and pip build charlm with: no part of the package that is installed."""
