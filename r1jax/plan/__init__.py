"""What a run on devices that are not here would need and cost: memory, work, traffic, time, dollars (`r1jax plan`).

Reader's path: settings.py (what a stage does) -> layout.py, memory.py (who holds what) -> ops.py, traffic.py, phases.py
(the time of each phase, by roofline) -> lengths.py, tail.py (answers of unlike lengths) -> bill.py (hours and dollars)
-> paper.py (R1's own bill, and schedules that do the same work for less). compiled.py asks XLA's compilers for memory.
Every number that is neither in a config nor in hardware.py is in assumptions.py, with its source.
"""
