"""Used everywhere, about nothing in particular: cache, progress, run directories, several processes, finite numbers."""
