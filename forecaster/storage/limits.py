"""Limits of the sizes of a bundle, for those parts that write, read or download one; bundles are much smaller."""

MAX_FILE_BYTES = 1 << 30  # of weights and graphs
MAX_TEXT_BYTES = 32 << 20  # of JSON files and of the card, which are parsed as a whole
MAX_BUNDLE_BYTES = 4 << 30  # of all files together
MAX_FILES = 128
