"""The commands of the command line, one file per command; a command reads its options, calls one function and prints the result."""
