"""What coded data tell before they are decoded: one file for each family of codecs."""
