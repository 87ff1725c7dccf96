"""What can be done with a finished run: talk to it, export it, describe it."""
