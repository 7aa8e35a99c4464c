"""`branchctl import`: what others' configurations say, as definitions of apps and instances.

Reading and translating change nothing and ask no daemon; creating.py and command.py do.
"""
