"""Finished runs as folders that anyone can load, evaluate and publish."""
