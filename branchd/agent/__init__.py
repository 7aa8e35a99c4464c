"""Runs inside the user's interpreter beside their Celery: `<their python> <this folder> -A proj worker ...`.

It stands alone: the standard library and celery, Python 3.8 syntax, nothing of branchd. What the two sides say to each
other is written down in branchd/wire/agent.py. Modules here carry names that no user's module can have, because this
folder is importable while the worker starts.
"""
