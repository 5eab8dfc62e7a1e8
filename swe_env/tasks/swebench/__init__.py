"""SWE-bench and its relatives: their rows read into tasks, their recipes run without Docker."""
