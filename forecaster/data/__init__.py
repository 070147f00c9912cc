"""Data preparation: from data frames to series, splits and network windows."""
