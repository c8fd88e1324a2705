"""The runtime: instances and their turns, the dispatcher, the supervisor, workers.

All are plain classes over ports (clock, store, transport); `actors` alone knows Ray and makes actors of them.
"""
