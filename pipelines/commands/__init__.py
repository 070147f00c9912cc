"""The commands of the command line, one file per command; each reads its options, calls one function and prints the result."""
