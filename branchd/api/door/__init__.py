"""The supervisor door: supervisord's XML-RPC and its log streams, for tools that were written for supervisord.

One more face of the use cases in branch/, as handlers/ is. Nothing is decided here that a use case could decide.
"""
