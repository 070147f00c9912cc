"""Series in, windows out: reading, splitting and cutting."""
