"""The commands of the command line, one file each; a command reads its options, calls one function and prints the result."""
