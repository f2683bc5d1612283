"""`make bench`: moefleet beside what it is compared with, in one run on one machine.

Belongs here: measurements, each a pair (ours, the other), medians and ratios, the command that repeats it.
Does not: pass or fail. Machines are noisy; the issue's bounds are printed beside what was found, a person judges.
"""
