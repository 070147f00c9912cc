"""Between bytes and records: one file per wire format, and the validation that they share."""
