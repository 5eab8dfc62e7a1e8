"""Other projects' agents in our environment: they keep their own loop, we run, grade and record."""
