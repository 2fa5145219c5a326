"""What runs in another Python: the worker's loop and wrappers. Nothing here may import the rest of this package."""
