"""From sources of documents to the windows and spans of a training step."""
