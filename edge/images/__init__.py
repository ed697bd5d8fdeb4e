"""Images: reading, labels, preprocessing, the golden pair."""
