"""Masks of signals as /proc/PID/status has them."""

#: signals 32 and 33, which glibc keeps to itself: nobody can reset what such a run was started with
OF_LIBC = 0b11 << 31
