"""The trusted helper processes behind `local` and `process`: plain stdlib, nothing of swe_env.

One *launcher* per Python process is started on first use and forks a *keeper* for each sandbox.
Both are single-threaded, so they may fork, unshare and setns, which a program with threads may
not; and both end with the program that uses them, however it ends.
"""
