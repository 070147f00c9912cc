"""Pages of the documentation that are generated from the code, and the folder from which the site is built."""
