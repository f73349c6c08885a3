"""One short file for each command: it declares options, asks the library, and gives the answer to the console."""
