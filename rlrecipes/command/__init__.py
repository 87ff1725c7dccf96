"""The command line's words: which options there are, how they are read, and the job that they ask for."""
