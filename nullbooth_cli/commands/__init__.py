"""One thin file per command: it declares options, asks the library, and hands the answer to the console."""
