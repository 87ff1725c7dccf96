"""What a reward model has learnt: its accuracy by parts, what it pays for, and the words it looks at."""
