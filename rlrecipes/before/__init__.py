"""What can be seen before anything is trained: the data as the model reads them, and the memory that is needed."""
